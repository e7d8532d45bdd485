"""The score e-process keeps its level under a look after each trial, finds gains soon, and is what its formula says."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kto_ray.bench.decisions_test import drifting, fixed_horizon, more
from kto_ray.bench.decisions_trials import Trials, first, over, reached, voters
from kto_ray.stats.score import BETS, Arms, Floats, Past, interval, log_evidence, log_harm, scores

LEVEL = 0.05

trials = st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.25, 0.5, 1.0])), max_size=60).map(
    lambda rows: (np.array([r[0] for r in rows], dtype=np.bool_), np.array([r[1] for r in rows], dtype=np.float64))
)
weights = st.floats(0.05, 0.95)


@settings(deadline=None)  # the machine may be busy
@given(trials, weights, st.floats(-1, 1))
def test_it_is_the_formula(arrays: tuple[Arms, Floats], weight: float, effect: float) -> None:
    """Against one trial after another, in plain numbers, as the module's docstring writes it."""
    arm, outcome = arrays
    wealth, ups, challengers, expected = dict.fromkeys(BETS, 1.0), 0.0, 0.0, []
    for t, (a, y) in enumerate(zip(arm.tolist(), outcome.tolist(), strict=True)):
        p, w = (1 + ups) / (2 + t), (50 * weight + challengers) / (50 + t)
        x = (a - w) * (y - effect * a - (p - effect * w)) / (p * (1 - p))
        more = max(effect, 0) / (p * (1 - p))
        cap = 0.5 / max(w / p + more * w * w, (1 - w) / (1 - p) + more * (1 - w) ** 2)
        wealth = {d: m * (1 + min(d, cap) * x) for d, m in wealth.items()}
        ups, challengers = ups + y, challengers + a
        expected.append(math.log(sum(wealth.values()) / len(BETS)))
    assert log_evidence(arm, outcome, weight, effect) == pytest.approx(expected, abs=1e-9)


@settings(deadline=None)  # the machine may be busy
@given(trials, weights)
def test_no_trial_takes_more_than_half_of_the_wealth(arrays: tuple[Arms, Floats], weight: float) -> None:
    for effect in (-1.0, 0.0, 0.3, 1.0):
        path = log_evidence(*arrays, weight, effect)
        assert np.all(np.diff(path, prepend=0.0) >= -math.log(2) - 1e-12)


@settings(deadline=None)  # the machine may be busy
@given(trials, weights, st.floats(0.01, 0.5))
def test_the_interval_s_ends_are_where_the_evidence_is_enough(
    arrays: tuple[Arms, Floats], weight: float, level: float
) -> None:
    arm, outcome = arrays
    low, high = interval(arm, outcome, weight, level)
    assert -1 <= low <= high <= 1
    mirrored = interval(arm, 1 - outcome, weight, level)
    assert mirrored == pytest.approx((-high, -low), abs=1e-5)
    if low > -1:
        assert log_evidence(arm, outcome, weight, low - 1e-4 if low > -1 + 1e-4 else -1.0)[-1] >= math.log(2 / level)
        assert log_evidence(arm, outcome, weight, min(1.0, low + 1e-4))[-1] < math.log(2 / level)


@settings(deadline=None)  # the machine may be busy
@given(st.integers(0, 10_000), weights, st.floats(0.02, 0.98), st.floats(0.02, 0.98), st.floats(0.01, 0.3))
def test_it_holds_the_observed_difference(seed: int, weight: float, p0: float, p1: float, level: float) -> None:
    drawn = voters(400, (p0, p1), weight)(np.random.default_rng(seed), 1)
    arm, outcome = drawn.challenger[0], drawn.outcome[0]
    low, high = interval(arm, outcome, weight, level)
    if arm.any() and not arm.all():
        assert low <= outcome[arm].mean() - outcome[~arm].mean() <= high


def test_evidence_falls_as_the_effect_grows() -> None:
    for seed, weight in ((0, 0.5), (1, 0.1), (2, 0.8)):
        drawn = voters(300, (0.4, 0.6), weight)(np.random.default_rng(seed), 20)
        last = [log_evidence(drawn.challenger, drawn.outcome, weight, e)[:, -1] for e in np.linspace(-1, 1, 41)]
        assert np.all(np.diff(last, axis=0) <= 1e-9)


def test_known_values_and_degenerate_ones() -> None:
    none = np.zeros(0)
    assert interval(none.astype(np.bool_), none, 0.5, LEVEL) == (-1, 1)
    arm = np.arange(200) % 2 == 0
    same = np.ones(200)
    assert abs(log_evidence(arm, same, 0.5)[-1]) < 0.05, "all are up: no evidence of a gain"
    low, high = interval(arm, same, 0.5, LEVEL)
    assert -0.2 < low < 0 < high < 0.2
    low, high = interval(arm, arm.astype(np.float64), 0.5, LEVEL)
    assert 0.5 < low < 1 and high == 1, "all of the challenger's are up, none of the champion's"
    assert log_harm(arm, 1.0 - arm, 0.5)[-1] == log_evidence(arm, arm.astype(np.float64), 0.5)[-1] > 20
    assert log_harm(arm, 1.0 - arm, 0.5, 0.3)[-1] > math.log(20) > log_harm(arm, 1.0 - arm, 0.5, 0.95)[-1]


def test_separate_tests_are_rows() -> None:
    drawn = voters(50, (0.4, 0.6))(np.random.default_rng(0), 3)
    rows = [log_evidence(drawn.challenger[i], drawn.outcome[i], 0.5, 0.1) for i in range(3)]
    assert log_evidence(drawn.challenger, drawn.outcome, 0.5, 0.1) == pytest.approx(np.stack(rows))


def test_what_comes_after_a_past_is_the_path_s_rest() -> None:
    drawn = voters(80, (0.4, 0.6))(np.random.default_rng(0), 1)
    arm, outcome = drawn.challenger[0], drawn.outcome[0]
    past = Past(50, float(arm[:50].sum()), float(outcome[:50].sum()))
    rest = scores(arm[50:], outcome[50:], 0.5, past)
    assert rest.score == pytest.approx(scores(arm, outcome, 0.5).score[50:])


def test_the_wealth_is_a_martingale_of_mean_one() -> None:
    """The mean of M over 20,000 clones' tests is 1 after few trials and not above it after many, where it hangs on few
    tests; that of a gain is above."""
    for rate, weight in ((0.3, 0.5), (0.6, 0.1), (0.8, 0.5)):
        drawn = voters(200, (rate, rate), weight)(np.random.default_rng(4), 20_000)
        wealth = np.exp(log_evidence(drawn.challenger, drawn.outcome, weight)[:, [4, 20, 60, 199]])
        error = wealth.std(axis=0) / math.sqrt(len(wealth))
        assert np.all(np.abs(wealth.mean(axis=0)[:2] - 1) < 4 * error[:2] + 0.005)
        assert np.all(wealth.mean(axis=0) < 1 + 4 * error) and np.all(wealth.mean(axis=0) > 0.7)
    drawn = voters(200, (0.3, 0.4))(np.random.default_rng(4), 2000)
    assert np.exp(log_evidence(drawn.challenger, drawn.outcome, 0.5)[:, -1]).mean() > 2


def _ever(drawn: Trials, effect: float = 0.0) -> Arms:
    return reached(log_evidence(drawn.challenger, drawn.outcome, 0.5, effect), LEVEL)[:, -1]


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
def test_a_clone_is_promoted_at_most_at_the_level_and_not_never(rate: float) -> None:
    """1,000 tests, a look after each of 3,000 voters: between 1% and 5% (and three standard errors)."""
    assert 0.01 <= over(voters(3000, (rate, rate)), 3000, 1000, 1, _ever).mean() <= LEVEL + 0.02


def test_a_gain_below_the_margin_is_no_gain() -> None:
    at_margin = over(voters(3000, (0.5, 0.55)), 3000, 1000, 2, lambda drawn: _ever(drawn, 0.05)).mean()
    assert 0.005 <= at_margin <= LEVEL + 0.02
    assert over(voters(3000, (0.5, 0.65)), 3000, 100, 2, lambda drawn: _ever(drawn, 0.05)).mean() > 0.9


@pytest.mark.parametrize("rates", [(0.3, 0.5), (0.6, 0.7)])
def test_a_gain_needs_no_more_voters_than_a_fixed_horizon(rates: tuple[float, float]) -> None:
    n = round(5 * fixed_horizon(rates))
    needed = over(
        voters(n, rates), n, 400, 3, lambda t: first(log_evidence(t.challenger, t.outcome, 0.5) >= -math.log(LEVEL))
    )
    assert 0.5 < np.median(needed) / fixed_horizon(rates) < 1.2
    assert np.isfinite(needed).mean() > 0.98


def test_unequal_vote_speed_under_a_drift_is_no_gain() -> None:
    """Twice as many of the challenger's users vote while both arms drift up: the estimated share holds what a fixed one
    does not (`bench decisions` measures both)."""
    assert 0.005 <= over(drifting(more, 0.6, 0.2), 5000, 400, 5, _ever).mean() <= 0.09


def test_twenty_thousand_trials_take_milliseconds() -> None:
    drawn = voters(20_000, (0.5, 0.55))(np.random.default_rng(0), 1)
    arm, outcome = drawn.challenger[0], drawn.outcome[0]

    def took() -> float:
        began = time.perf_counter()
        log_evidence(arm, outcome, 0.5, 0.02)
        return time.perf_counter() - began

    assert min(took() for _ in range(5)) < 0.01


@pytest.mark.parametrize(
    ("arms", "outcomes", "weight", "effect"),
    [
        (3, [1.0, 0.0], 0.5, 0),
        (2, [1.0, 1.5], 0.5, 0),
        (2, [1.0, math.nan], 0.5, 0),
        (2, [1.0, 0.0], 1.0, 0),
        (2, [1.0, 0.0], 0.5, 1.5),
    ],
)
def test_impossible_input_is_refused(arms: int, outcomes: list[float], weight: float, effect: float) -> None:
    with pytest.raises(ValueError, match=r"outcome|assignment|effect"):
        log_evidence(np.zeros(arms, dtype=np.bool_), np.array(outcomes), weight, effect)
    with pytest.raises(ValueError, match="level"):
        interval(np.zeros(2, dtype=np.bool_), np.ones(2), 0.5, 0.0)
