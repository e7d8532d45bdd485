"""The confidence sequence keeps its word under constant peeking; a fixed-n interval does not; and it decides soon."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import binom

from kto_ray.bench.peeking import decided_at, ever_misses, paths, wald_ever_misses
from kto_ray.records.rollouts import ArmCount
from kto_ray.stats.sequential import interval, log_evidence

ALPHA = 0.05


def arms(champion: tuple[int, int], challenger: tuple[int, int]) -> tuple[ArmCount, ArmCount]:
    return ArmCount(*champion), ArmCount(*challenger)


counts = st.integers(0, 300).flatmap(lambda n: st.builds(ArmCount, st.just(n), st.integers(0, n)))


@given(counts, counts, st.floats(0.01, 0.3))
def test_the_interval_holds_the_observed_difference_and_mirrors(a: ArmCount, b: ArmCount, alpha: float) -> None:
    low, high = interval(a, b, alpha)
    assert -1 <= low <= high <= 1
    if a.users and b.users:
        assert low <= b.up / b.users - a.up / a.users <= high
    mirrored = interval(b, a, alpha)
    assert mirrored == pytest.approx((-high, -low), abs=1e-6)


@given(counts, counts)
def test_its_ends_are_where_the_evidence_reaches_one_over_alpha(a: ArmCount, b: ArmCount) -> None:
    """A millionth inside an end there is too little evidence, a millionth outside enough."""
    for end, outwards in zip(interval(a, b, ALPHA), (-1e-6, 1e-6), strict=True):
        if abs(end) < 1 - 1e-6:
            assert log_evidence(a, b, end - outwards) < math.log(1 / ALPHA) < log_evidence(a, b, end + outwards)


@given(counts, counts, st.floats(-0.99, 0.99))
def test_the_nuisance_rate_is_the_least_favourable_one(a: ArmCount, b: ArmCount, delta: float) -> None:
    """Against a dense grid: no p0 gives less evidence than the cubic's root."""

    def at(p: float) -> float:
        def loss(arm: ArmCount, q: float) -> float:
            terms = [(arm.up, q), (arm.users - arm.up, 1 - q)]
            return -sum(n * math.log(x) if x > 0 else -math.inf for n, x in terms if n)

        return loss(a, p) + loss(b, p + delta)

    low, high = max(0.0, -delta), min(1.0, 1 - delta)
    grid = [low + (high - low) * i / 400 for i in range(1, 400)]
    best = min(at(p) for p in grid)
    around = minimize_scalar(at, bounds=(low + 1e-9, high - 1e-9), method="bounded", options={"xatol": 1e-10}).fun
    constant = log_evidence(a, b, delta) - _mixtures(a) - _mixtures(b)
    assert constant <= min(best, around) + 1e-7


def _mixtures(arm: ArmCount) -> float:
    return math.lgamma(arm.up + 1) + math.lgamma(arm.users - arm.up + 1) - math.lgamma(arm.users + 2)


@pytest.mark.parametrize(
    ("champion", "challenger", "low", "high"),
    [
        ((0, 0), (0, 0), -1.0, 1.0),
        ((0, 0), (30, 30), -0.1929, 1.0),
        ((200, 0), (0, 0), -0.0406, 1.0),
        ((30, 0), (30, 30), 0.6968, 1.0),
        ((1000, 0), (1000, 0), -0.0167, 0.0167),
        ((60, 9), (60, 27), -0.0080, 0.5773),
    ],
)
def test_known_values(champion: tuple[int, int], challenger: tuple[int, int], low: float, high: float) -> None:
    assert interval(*arms(champion, challenger), ALPHA) == pytest.approx((low, high), abs=1e-4)


def test_it_takes_milliseconds() -> None:
    interval(*arms((60, 9), (60, 27)), ALPHA)
    began = time.perf_counter()
    for users in range(100, 200):
        interval(*arms((users, 20), (users, 40)), ALPHA)
    assert (time.perf_counter() - began) / 100 < 0.01


@pytest.mark.parametrize(("count", "alpha"), [((3, 4), 0.05), ((3, -1), 0.05), ((3, 1), 0.0), ((3, 1), 1.0)])
def test_impossible_input_is_refused(count: tuple[int, int], alpha: float) -> None:
    with pytest.raises(ValueError, match=r"impossible|alpha"):
        interval(*arms(count, (5, 2)), alpha)


@pytest.mark.parametrize(("p0", "p1"), [(0.15, 0.15), (0.5, 0.5), (0.15, 0.45), (0.9, 0.8)])
def test_it_covers_the_truth_at_every_look(p0: float, p1: float) -> None:
    """400 runs, a look after each of 300 users: at most alpha of the runs ever miss (99.9% binomial tolerance), while
    the naive interval breaks the same bound, so this test can fail."""
    runs = 400
    most = binom.ppf(0.999, runs, ALPHA)
    simulated = paths((p0, p1), runs, 300)
    assert sum(ever_misses(path, p1 - p0, ALPHA) for path in simulated) <= most
    assert sum(wald_ever_misses(path, p1 - p0, ALPHA) for path in simulated) > most


def test_it_covers_in_a_lopsided_canary() -> None:
    runs = 300
    simulated = paths((0.3, 0.3), runs, 300, weight=0.1, seed=3)
    assert sum(ever_misses(path, 0.0, ALPHA) for path in simulated) <= binom.ppf(0.999, runs, ALPHA)


def test_a_real_gain_is_found_in_time() -> None:
    """0.15 -> 0.45: nine runs in ten are decided, in the right direction, within 150 users an arm."""
    found = 0
    for path in paths((0.15, 0.45), 100, 300, seed=1):
        users = decided_at(path, ALPHA)
        if users is not None:
            lows = [
                interval(ArmCount(n0, s0), ArmCount(n1, s1), ALPHA)[0] for n0, s0, n1, s1 in path[users - 2 : users]
            ]
            assert lows[0] <= 0 < lows[1], "the user who decided it"
            found += 1
    assert found >= 90
