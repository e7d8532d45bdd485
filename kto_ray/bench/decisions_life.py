"""What comes after a test: the next ones (an error budget for life), and the holdback that watches a champion."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.random import Generator
from scipy.stats import chi2

from kto_ray.bench.decisions_trials import LEVEL, highest, over, share, voters
from kto_ray.stats import budget, detector
from kto_ray.stats.budget import Spent
from kto_ray.stats.score import Arms, Floats, Past

ROUNDS, VOTERS = 50, 10_000
TRUE = 0.2  # of the rounds: a gain of 5 points above 0.5
POOL = (20_000, 8_000)  # simulated rounds that lifetimes draw from, without and with a gain
START, GROWN, WEEK = 0.1, 0.5, 7  # the holdback's share, before and after a warning; the days of a draw


def lifetimes(tests: int) -> dict[str, Any]:
    """Rounds in a row: false promotions among promotions, and true promotions kept: by the score with e-LORD, as the
    loop decides with it, and by the score with 5% each.

    Of a round only the largest evidence matters, so lifetimes draw their rounds from a pool of simulated ones.
    """
    pools = [
        over(voters(VOTERS, rates), VOTERS, size, 4, highest)
        for size, rates in zip(POOL, ((0.5, 0.5), (0.5, 0.55)), strict=True)
    ]
    random = np.random.default_rng(5)
    real = random.random((tests, ROUNDS)) < TRUE
    drawn = [random.integers(size, size=real.shape) for size in POOL]
    alone, decided = (np.where(real, pools[1][drawn[1], by], pools[0][drawn[0], by]) for by in (0, 1))
    return {
        "rounds": ROUNDS,
        "voters": VOTERS,
        "e_lord": _life(np.stack([_promotions(each) for each in alone]), real),
        "as_decided": _life(np.stack([_promotions(each) for each in decided]), real),
        "each_at_5": _life(alone >= -math.log(LEVEL), real),
    }


def _promotions(highest: Floats) -> Arms:
    """Of one lifetime, by the budget."""
    spent: list[Spent] = []
    for evidence in highest:
        level = budget.level(spent)
        spent.append(Spent(level, bool(evidence >= -math.log(level))))
    return np.array([test.promoted for test in spent])


def _life(promoted: Arms, real: Arms) -> dict[str, Any]:
    false = (promoted & ~real).sum(axis=1) / np.maximum(promoted.sum(axis=1), 1)
    error = 1.96 * false.std() / math.sqrt(false.size)
    return {
        "false_discovery_share": float(false.mean()),
        "low_share": float(false.mean() - error),
        "high_share": float(false.mean() + error),
        "kept": share(promoted[real]),
    }


def alarms(tests: int, per_day: int, fall: float, days: int, quiet: int = 0, seed: int = 6) -> Floats:
    """Days from the fall (after so many quiet days) to the alarm; infinite where there is none within `days`."""
    at = alarms_of(tests, per_day, days + quiet, seed, lambda day: np.full(tests, fall if day > quiet else 0.0))
    return at - quiet


def alarms_of(
    tests: int, per_day: int, days: int, seed: int, fall: Callable[[int], Floats], rate: float = 0.6
) -> Floats:
    """The day of the alarm, from 1; infinite where there is none. `fall` is each champion's on a day.

    The holdback grows at a warning, from the next morning on, until a week from then ends without one.
    """
    random = np.random.default_rng(seed)
    stakes, sums = np.zeros((tests, len(detector.BETS))), np.zeros((3, tests))
    grown, alarm = np.zeros(tests, dtype=np.bool_), np.full(tests, math.inf)
    drawn = np.zeros(tests)  # the day of the present draw
    for day in range(1, days + 1):
        stakes, sums = _day(random, stakes, sums, grown, per_day, rate, fall(day))
        evidence = detector.log_evidence_many(stakes)
        alarm = np.where(np.isinf(alarm) & (evidence >= math.log(detector.ALARM)), day, alarm)
        warned, week_ends = evidence >= detector.warn_at(day), day - drawn >= WEEK
        grown, before = np.where(week_ends, warned, grown | warned), grown
        drawn = np.where(week_ends | (grown & ~before), day, drawn)
        sums = np.where(grown != before, 0.0, sums)  # another assignment: `detector.fold` begins its sums anew too
        if np.isfinite(alarm).all():
            break
    return alarm


def _day(
    random: Generator, stakes: Floats, sums: Floats, grown: Arms, per_day: int, rate: float, fall: Floats
) -> tuple[Floats, Floats]:
    """One day of each life: the holdback's users are up at `rate`, the champion's at `rate` - `fall`."""
    stakes, sums = stakes.copy(), sums.copy()
    held = random.random((stakes.shape[0], per_day)) < np.where(grown, GROWN, START)[:, None]
    up = random.random(held.shape) < np.where(held, rate, rate - fall[:, None])
    for weight, of in ((START, ~grown), (GROWN, grown)):
        if of.any():
            past = Past(*sums[:, of])
            stakes[of], after = detector.fold_many(stakes[of], past, held[of], up[of].astype(np.float64), weight)
            sums[:, of] = np.stack([np.asarray(each) for each in (after.trials, after.challengers, after.outcomes)])
    return stakes, sums


def falls(tests: int, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """Median days to the alarm, where the champion was worse from the promotion on, and after 30 quiet days."""
    found = []
    for per_day in (100, 1000):
        for fall in (0.05, 0.1, 0.2):
            at_once = float(np.median(alarms(tests, per_day, fall, 250)))
            later = alarms(tests, per_day, fall, 250, quiet=30)
            after = float(np.median(later[later > 0]))
            found.append({"per_day": per_day, "fall": fall, "at_once_days": at_once, "later_days": after})
            tell(f"a fall of {fall:.0%} at {per_day} voters a day: {at_once:.0f} days, {after:.0f} after 30 quiet ones")
    return found


def false_alarms(tests: int) -> list[dict[str, Any]]:
    """Without a fall: alarms in so many days, and in ten years, with an exact interval of a Poisson count (Garwood)."""
    found = []
    for per_day, days in ((100, 730), (1000, 183)):
        alarm = alarms(tests, per_day, 0.0, days, seed=7)
        count, decades = int(np.isfinite(alarm).sum()), float(np.minimum(alarm, days).sum()) / 3650
        low = float(chi2.ppf(0.025, 2 * count)) / 2 if count else 0.0
        high = float(chi2.ppf(0.975, 2 * count + 2)) / 2
        found.append(
            {"per_day": per_day, "days": days, **share(np.isfinite(alarm)), "bound_share": days / detector.ALARM}
            | {"per_decade": count / decades, "low_per_decade": low / decades, "high_per_decade": high / decades}
        )
    return found
