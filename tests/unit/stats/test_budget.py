"""The budget of a loop's life: levels by hand, what a promotion is worth, and the false discovery rate it keeps."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kto_ray.stats.budget import Spent, left, level, promotions

lives = st.lists(st.booleans(), max_size=40)


def live(promoted: list[bool]) -> list[Spent]:
    spent: list[Spent] = []
    for each in promoted:
        spent.append(Spent(level(spent), each))
    return spent


def test_the_first_levels_by_hand() -> None:
    assert level([]) == pytest.approx(0.005)
    assert level(live([False])) == pytest.approx(0.05 * 0.095)
    assert level(live([True])) == pytest.approx(0.05 * 0.095 * 2)
    assert level(live([True, False])) == pytest.approx(0.05 * (0.1 - 0.005 - 0.0095 / 2) * 2)
    assert left(live([True, False])) == pytest.approx(0.1 - 0.005 - 0.0095 / 2)
    assert promotions(live([True, False, True])) == 2


@settings(deadline=None)  # the machine may be busy
@given(lives, st.floats(0.01, 0.5), st.floats(0.01, 0.5))
def test_it_never_spends_more_than_alpha(promoted: list[bool], alpha: float, omega: float) -> None:
    """Each test costs a share omega of what is left, whatever was promoted: the closed form of the recursion."""
    spent: list[Spent] = []
    for t, each in enumerate(promoted):
        expected = alpha * omega * (1 - omega) ** t * (promotions(spent) + 1)
        assert level(spent, alpha, omega) == pytest.approx(expected)
        spent.append(Spent(level(spent, alpha, omega), each))
    assert 0 < left(spent, alpha) <= alpha


@settings(deadline=None)  # the machine may be busy
@given(lives)
def test_a_promotion_raises_the_next_level_and_a_reset_begins_anew(promoted: list[bool]) -> None:
    spent = live(promoted)
    assert level(live([*promoted, True])) > level(live([*promoted, False]))
    assert level(live([*promoted, False])) < level(spent)
    assert level(spent[len(spent) :]) == level([])


def test_an_alpha_that_was_lowered_leaves_nothing() -> None:
    spent = live([False] * 40)
    assert level(spent, alpha=0.05) == 0.0 == left(spent, alpha=0.05)
    with pytest.raises(ValueError, match="omega must lie between 0 and 1, got 1"):
        level([], omega=1)


def test_false_promotions_are_few_even_where_rounds_are_the_worst_e_values() -> None:
    """Nulls whose evidence is 1 / level with just the chance that Markov allows; a fifth of rounds are real gains that
    always show. 2,000 lives of 30 rounds: at most alpha of the promotions are false, and not nearly none."""
    random = np.random.default_rng(0)
    shares = []
    for _ in range(2000):
        spent: list[Spent] = []
        false = 0
        for _ in range(30):
            now, real = level(spent), random.random() < 0.2
            promoted = bool(real or random.random() < now)
            false += promoted and not real
            spent.append(Spent(now, promoted))
        shares.append(false / max(1, promotions(spent)))
    assert 0.02 < np.mean(shares) <= 0.1
    assert math.isfinite(level(spent))
