"""Does the champion still deserve its place? A Shiryaev-Roberts e-detector on the holdback, folded day by day. Pure.

Some users stay on the previous champion: the holdback, arm 1 of the score (`score`). Evidence that arm 1 is better is
evidence that the present champion is worse than the one that it replaced, now. Both arms live through the same days, so
a drift that they share is no evidence; a comparison with the rate at promotion would take it for some. For each bet d,
at the end of each day,

    M <- (M + 1) prod over the day's trials of (1 + min(d, c_t) x_t),   M = 0 at the promotion.

The 1 is a new e-process that begins that morning; M is the sum of those of all days so far, each with one unit, for
nobody knows the day on which a champion goes bad. A day on which no trial settled is none. M - (days) is a martingale
while the champion is no worse, so by optional stopping the mean time to a false alarm at M >= ALARM is at least ALARM
days: ten years of daily looks. The mean over bets keeps that. As in `score`, the bound is exact where the share of each
arm among those who come is known, and `kto-ray bench decisions` measures what its estimate costs.

At WARN the holdback should grow to a half: the alarm then comes sooner, or the warning passes. M alone grows by one a
day, whoever is better; so from half a year on a warning must also be twice what the days alone make of it.

Source: J. Shin, A. Ramdas, A. Rinaldo, "E-detectors: a nonparametric framework for sequential change detection", New
England Journal of Statistics in Data Science 2 (2024), the SR e-detector and its average run length.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

import numpy as np

from kto_ray.stats.score import Arms, Floats, Past, log_factors, log_mean, scores

BETS = (0.03, 0.06, 0.12, 0.24)
ALARM = 3650.0  # days: the least mean time to a false alarm
WARN = 365.0
ABOVE = 2.0  # times the days, at a warning
_KEPT = 0.9  # of the sums that rate and share are estimated from, a day: ten days' memory follows a drift


@dataclass(frozen=True, slots=True)
class Watch:
    """What is kept between days; plain numbers, fit for JSON.

    `log_stakes` holds log(M + 1) for each bet, what tomorrow's first trial is bet with. The sums are of past trials,
    faded; they speak of one weight, and start anew where it changes.
    """

    log_stakes: tuple[float, ...] = (0.0,) * len(BETS)
    weight: float = 0.0
    trials: float = 0.0
    holdback: float = 0.0
    outcomes: float = 0.0
    days: int = 0  # on which trials settled


class Said(enum.StrEnum):
    QUIET = "quiet"
    WARN = "warn"
    ALARM = "alarm"


def fold(watch: Watch, holdback: Arms, outcome: Floats, weight: float) -> Watch:
    """The state after one more day.

    Args:
        watch: the state of the evening before; `Watch()` at the promotion.
        holdback: (n,) whether each trial's user was held back, in the order of settlement.
        outcome: (n,) in [0, 1].
        weight: the holdback's share of the assignment on that day.

    Raises:
        ValueError: as of `score.log_evidence`.
    """
    if not len(outcome):
        return watch
    same = weight == watch.weight
    past = Past(watch.trials, watch.holdback, watch.outcomes) if same else Past()
    stakes, after = fold_many(np.asarray(watch.log_stakes), past, holdback, outcome, weight)
    sums = (float(after.trials), float(after.challengers), float(after.outcomes))
    return Watch(tuple(stakes.tolist()), weight, *sums, watch.days + 1)


def fold_many(log_stakes: Floats, past: Past, holdback: Arms, outcome: Floats, weight: float) -> tuple[Floats, Past]:
    """`fold` of many watches at once: stakes (..., bets), trials (..., n), and the sums before and after."""
    score, cap = scores(holdback, outcome, weight, past).against(0.0)
    grown = np.stack([log_factors(score, cap, bet).sum(axis=-1) for bet in BETS], axis=-1)
    arm, y = np.asarray(holdback, dtype=np.float64), np.asarray(outcome, dtype=np.float64)
    after = Past(
        trials=_KEPT * (past.trials + arm.shape[-1]),
        challengers=_KEPT * (past.challengers + arm.sum(axis=-1)),
        outcomes=_KEPT * (past.outcomes + y.sum(axis=-1)),
    )
    return np.logaddexp(log_stakes + grown, 0.0), after


def log_evidence(watch: Watch) -> float:
    """log of M, the mean over the bets; -inf before the first day."""
    return float(log_evidence_many(np.asarray(watch.log_stakes)))


def log_evidence_many(log_stakes: Floats) -> Floats:
    """The same of stakes (..., bets)."""
    stake = log_mean([log_stakes[..., i] for i in range(log_stakes.shape[-1])])
    with np.errstate(divide="ignore"):
        evidence: Floats = stake + np.log(-np.expm1(-stake))
    return evidence


def said(watch: Watch) -> Said:
    """What the evidence asks for: nothing, a larger holdback, or the previous champion's return."""
    evidence = log_evidence(watch)
    if evidence >= math.log(ALARM):
        return Said.ALARM
    return Said.WARN if evidence >= warn_at(watch.days) else Said.QUIET


def warn_at(days: int) -> float:
    """The evidence, as log M, of a warning after so many days."""
    return math.log(max(WARN, ABOVE * days))
