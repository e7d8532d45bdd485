"""Exact paired tests: they hold their level at the worst truth, and are not idle there."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from scipy.stats import multinomial

from kto_ray.stats.exact import _score, much_worse, share_interval, worse


def test_worse_is_the_sign_test_by_hand() -> None:
    assert worse(0, 0) == worse(0, 5) == 1.0
    assert worse(5, 0) == pytest.approx(1 / 32)
    assert worse(4, 1) == pytest.approx(6 / 32)
    assert worse(8, 2) == pytest.approx(56 / 1024)


def test_intervals_of_a_share() -> None:
    assert share_interval(0, 20, 0.95) == pytest.approx((0.0, 1 - 0.025 ** (1 / 20)))
    assert share_interval(20, 20, 0.95) == pytest.approx((0.025 ** (1 / 20), 1.0))
    assert share_interval(5, 50, 0.95) == pytest.approx((0.0333, 0.2181), abs=1e-4)  # the textbook's


@pytest.mark.parametrize("items", [5, 20])
@pytest.mark.parametrize("ties", [0.0, 0.1, 0.6, 1.0])
def test_half_counts_make_an_interval_no_narrower_than_it_says(items: int, ties: float) -> None:
    tables = np.array([(won, tied) for won in range(items + 1) for tied in range(items + 1 - won)])
    bounds = np.array([share_interval(won + tied / 2, items, 0.75) for won, tied in tables])
    full = np.column_stack([tables, items - tables.sum(axis=1)])
    for won in np.linspace(0, 1 - ties, 15):
        truth = won + ties / 2
        chances = multinomial.pmf(full, items, [won, ties, max(0.0, 1 - won - ties)])
        assert chances[(bounds[:, 0] <= truth) & (truth <= bounds[:, 1])].sum() >= 0.75


def test_without_a_difference_the_chance_is_that_of_losing_none() -> None:
    assert much_worse(0, 0, 16, 0.1) == pytest.approx(0.9**16)
    assert much_worse(0, 0, 29, 0.1) < 0.05 < much_worse(0, 0, 28, 0.1), "the rule of three"
    assert much_worse(16, 0, 16, 0.5) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("lost", "won", "margin"), [(7, 3, 0.1), (0, 4, 0.2), (12, 0, 0.05), (3, 3, 0.5), (20, 11, 0.1)]
)
def test_the_score_is_at_the_likeliest_share_of_wins(lost: int, won: int, margin: float) -> None:
    """Tango's closed form against a search."""
    shares = np.linspace(1e-9, (1 - margin) / 2 - 1e-9, 400_001)
    rest = 40 - lost - won
    likelihood = lost * np.log(shares + margin) + won * np.log(shares) + rest * np.log(1 - margin - 2 * shares)
    share = shares[np.argmax(likelihood)]
    want = (40 * margin - (lost - won)) / np.sqrt(40 * (2 * share + margin * (1 - margin)))
    assert _score(np.array([float(lost)]), np.array([float(won)]), 40, margin)[0] == pytest.approx(want, abs=1e-3)


@cache
def shown(items: int, margin: float) -> np.ndarray:
    """The tables (lost, won) of which much_worse is at most 5%."""
    tables = [(b, c) for b in range(items + 1) for c in range(items + 1 - b)]
    return np.array([(b, c) for b, c in tables if much_worse(b, c, items, margin) <= 0.05])


def test_a_level_is_the_chance_of_all_that_speaks_as_much_against_it() -> None:
    """By brute force over tables and a fine grid of the nuisance."""
    tables = np.array([(b, c) for b in range(13) for c in range(13 - b)])
    scores = _score(tables[:, 0].astype(float), tables[:, 1].astype(float), 12, 0.3)
    for lost, won in ((0, 0), (2, 1), (4, 4), (1, 5), (6, 0)):
        seen = scores[(tables[:, 0] == lost) & (tables[:, 1] == won)][0]
        extreme = tables[scores >= seen - 1e-9]
        full = np.column_stack([extreme, 12 - extreme.sum(axis=1)])
        chances = [multinomial.pmf(full, 12, [w + 0.3, w, 0.7 - 2 * w]).sum() for w in np.linspace(0, 0.35, 400)]
        assert much_worse(lost, won, 12, 0.3) == pytest.approx(max(chances), abs=2e-3)


def chance(items: int, margin: float, lost: float, won: float) -> float:
    tables = shown(items, margin)
    rest = items - tables.sum(axis=1)
    return float(multinomial.pmf(np.column_stack([tables, rest]), items, [lost, won, 1 - lost - won]).sum())


@pytest.mark.parametrize(("items", "margin"), [(16, 0.5), (30, 0.2)])
def test_the_level_holds_at_every_truth_that_is_worse_by_the_margin(items: int, margin: float) -> None:
    errors = [chance(items, margin, won + margin, won) for won in np.linspace(0, (1 - margin) / 2, 13)]
    assert max(errors) <= 0.05 + 1e-6
    assert max(errors) > 0.02, "a test that shows nothing would hold it too"
    assert chance(items, margin, margin + 0.15, 0.05) < 0.05, "nor beyond the margin"
    assert chance(items, margin, 0.1, 0.1) > 0.5, "and equals are mostly seen as such"


@pytest.mark.parametrize("wrong", [(-1, 0, 5, 0.1), (3, 3, 5, 0.1), (0, 0, 0, 0.1), (1, 1, 5, 1.0)])
def test_counts_that_are_none_are_refused(wrong: tuple[int, int, int, float]) -> None:
    with pytest.raises(ValueError, match="no pairs"):
        much_worse(*wrong)
