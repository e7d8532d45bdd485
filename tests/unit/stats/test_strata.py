"""A mean difference over weeks: by hand, and how seldom its interval is wrong at the end of any of them."""

from __future__ import annotations

import numpy as np
import pytest

from kto_ray.records.rollouts import ArmCount
from kto_ray.stats.strata import Strata, fold, interval


def test_weeks_count_by_what_they_can_tell() -> None:
    one = fold(Strata(), ArmCount(30, 21.0), ArmCount(10, 5.0))
    assert (one.strata, one.one, one.other, one.information) == (1, 30, 10, 7.5)
    assert one.mean == pytest.approx(0.2)
    both = fold(one, ArmCount(5, 2.0), ArmCount(5, 4.0))
    assert both.mean == pytest.approx((7.5 * 0.2 + 2.5 * -0.4) / 10)
    assert (both.strata, both.one, both.other) == (2, 35, 15)


def test_a_drift_that_both_arms_share_is_no_difference() -> None:
    """Pooled over both weeks, 190 of 200 against 55 of 110 would look like a gain of 45 points."""
    sums = fold(Strata(), ArmCount(190, 190 * 0.9), ArmCount(10, 9.0))
    assert fold(sums, ArmCount(10, 4.0), ArmCount(100, 40.0)).mean == pytest.approx(0.0)


@pytest.mark.parametrize("week", [(ArmCount(0, 0.0), ArmCount(9, 3.0)), (ArmCount(9, 3.0), ArmCount(0, 0.0))])
def test_a_week_without_one_arm_tells_nothing(week: tuple[ArmCount, ArmCount]) -> None:
    sums = fold(Strata(), *week)
    assert sums == Strata() and sums.mean is None and interval(sums, 0.05) == (-1.0, 1.0)


def test_it_shrinks_and_refuses_what_is_no_chance() -> None:
    sums, widths = Strata(), []
    for _ in range(50):
        sums = fold(sums, ArmCount(900, 600.0), ArmCount(30, 17.0))
        low, high = interval(sums, 0.05)
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True) and widths[-1] < 0.14
    assert sums.mean is not None and low == pytest.approx(sums.mean - (high - low) / 2)
    assert interval(sums, 0.2)[0] > low
    with pytest.raises(ValueError, match="alpha must lie between 0 and 1"):
        interval(sums, 0.0)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_it_seldom_excludes_the_mean_of_gains_that_change_at_any_weeks_end(rate: float) -> None:
    """Weeks of few and many judges, gains of 0 and 30 points: the truth is their mean by what each week tells."""
    rng, wrong, runs = np.random.default_rng(7), 0, 400
    for _ in range(runs):
        sums, truth = Strata(), 0.0
        for week in range(60):
            many, few, gain = int(rng.integers(20, 200)), int(rng.integers(1, 20)), 0.3 * (week % 2)
            counts = ((many, rate + gain), (few, rate))
            one, other = (ArmCount(n, float(rng.binomial(n, p))) for n, p in counts)
            sums = fold(sums, one, other)
            truth += gain * many * few / (many + few)
            low, high = interval(sums, 0.05)
            if not low <= truth / sums.information <= high:
                wrong += 1
                break
    assert wrong <= 0.05 * runs
    assert wrong >= (1 if rate == 0.5 else 0), "one that is never wrong would be too wide"
