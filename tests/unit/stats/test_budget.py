"""The budget of a loop's life: levels by hand, what a promotion is worth, and the false discovery rate it keeps."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kto_ray.records.rollouts import RolloutState, RolloutStatus
from kto_ray.stats.budget import Spent, left, level, promotions, spent

lives = st.lists(st.booleans(), max_size=40)


def live(promoted: list[bool]) -> list[Spent]:
    life: list[Spent] = []
    for each in promoted:
        life.append(Spent(level(life), each))
    return life


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
    life: list[Spent] = []
    for t, each in enumerate(promoted):
        expected = alpha * omega * (1 - omega) ** t * (promotions(life) + 1)
        assert level(life, alpha, omega) == pytest.approx(expected)
        life.append(Spent(level(life, alpha, omega), each))
    assert 0 < left(life, alpha) <= alpha


@settings(deadline=None)  # the machine may be busy
@given(lives)
def test_a_promotion_raises_the_next_level_and_a_reset_begins_anew(promoted: list[bool]) -> None:
    life = live(promoted)
    assert level(live([*promoted, True])) > level(live([*promoted, False]))
    assert level(live([*promoted, False])) < level(life)
    assert level(life[len(life) :]) == level([])


def ended(level: float, status: RolloutStatus, by_evidence: bool = True) -> RolloutState:
    begun = RolloutState("r", "policy@base", "policy@v1", "salt", 1, 0.5, status, 1.0, 2.0, 3.0)
    return replace(begun, level=level, by_evidence=by_evidence)


def test_every_finished_test_is_spent_and_only_evidence_makes_a_promotion() -> None:
    tests = [
        ended(0.005, RolloutStatus.PROMOTED),
        ended(0.004, RolloutStatus.PROMOTED, by_evidence=False),
        ended(0.003, RolloutStatus.ABORTED),
        ended(0.002, RolloutStatus.ABORTED, by_evidence=False),
    ]
    assert spent(tests) == [Spent(0.005, True), Spent(0.004, False), Spent(0.003, False), Spent(0.002, False)]
    assert left(spent(tests)) == pytest.approx(0.1 - 0.005 - (0.004 + 0.003 + 0.002) / 2)


def test_a_life_keeps_alpha_where_an_operator_promotes_all_that_showed_nothing() -> None:
    """2,000 lives of 50 nulls whose evidence is the worst: a life has a false promotion with at most alpha, and not
    nearly none. Left out of the budget, an operator's promotions would let every test begin at the first level."""
    random = np.random.default_rng(1)
    false = 0
    for _ in range(2000):
        tests: list[RolloutState] = []
        for chance in random.random(50):
            now = level(spent(tests))
            tests.append(ended(now, RolloutStatus.PROMOTED, by_evidence=bool(chance < now)))
            if chance < now:
                false += 1
                break
    assert 0.05 < false / 2000 <= 0.1


def test_an_alpha_that_was_lowered_leaves_nothing() -> None:
    life = live([False] * 40)
    assert level(life, alpha=0.05) == 0.0 == left(life, alpha=0.05)
    with pytest.raises(ValueError, match="omega must lie between 0 and 1, got 1"):
        level([], omega=1)


def test_false_promotions_are_few_even_where_rounds_are_the_worst_e_values() -> None:
    """Nulls whose evidence is 1 / level with just the chance that Markov allows; a fifth of rounds are real gains that
    always show. 2,000 lives of 30 rounds: at most alpha of the promotions are false, and not nearly none."""
    random = np.random.default_rng(0)
    shares = []
    for _ in range(2000):
        life: list[Spent] = []
        false = 0
        for _ in range(30):
            now, real = level(life), random.random() < 0.2
            promoted = bool(real or random.random() < now)
            false += promoted and not real
            life.append(Spent(now, promoted))
        shares.append(false / max(1, promotions(life)))
    assert 0.02 < np.mean(shares) <= 0.1
    assert math.isfinite(level(life))
