"""Evidence, after every settled trial, that a challenger is better: the one-sided score e-process. Pure.

A trial is a user: A says whether the challenger served them, y in [0, 1] is what stood of their votes when the trial
settled. Trials come in the order in which they settled and never change afterwards. For the null "gain <= effect",
with w the share of challengers and p the pooled rate, both as known before trial t,

    p_t = (1 + sum of y before) / (2 + trials before)
    w_t = (50 w + challengers before) / (50 + trials before)
    x_t = (A_t - w_t) (y_t - effect A_t - (p_t - effect w_t)) / (p_t (1 - p_t))
    M_n = mean over d in BETS of prod over t <= n of (1 + min(d, c_t) x_t)

x_t is the score of a logistic model at "no gain", and d the size of the bet on it: no one size suits small and large
gains, a mean over sizes loses a factor of five at most. c_t keeps every factor at 1/2 or more, so the wealth M is never
negative and a single trial can at most halve it.

Why it is valid. y - effect A has the same mean in both arms where the gain is `effect`, and a lower one in the
challenger's where the gain is smaller. Given the past, with s the true share of challengers among those who come,

    E[x_t] p_t (1 - p_t) = s (1 - s) (gain - effect) + (s - w_t) (rate - p_t) - effect (s - w_t)^2.

The first term is at most 0 under the null. The rest is 0 where w_t is the true share: M is then a non-negative
supermartingale that begins at 1, and Ville's inequality gives P(M is EVER >= 1 / level) <= level. So one may look after
every trial, and rejecting because M was once above 1 / level, though it has fallen since, is as valid.

The trap. Among users who vote, s is not the share of the assignment: where the challenger's users vote sooner or more
often, the fixed w leaves a term (s - w)(rate - p_t) that does not vanish, and a mere difference in vote speed would be
promoted as a gain. So w_t is estimated too; the term is then the product of two errors of estimation. That it is small
is no theorem: `kto-ray bench decisions` measures what is left, and a hold on unequal shares of voters (`ratio`) stands
beside this test. Who are silent is no matter of this test either: `ratio.more_ups`.

Sources: J. Ville, "Étude critique de la notion de collectif" (1939); I. Waudby-Smith, A. Ramdas, "Estimating means of
bounded random variables by betting", JRSS-B 86 (2024), for the bets and their truncation; A. Ramdas, P. Grünwald,
V. Vovk, G. Shafer, "Game-theoretic statistics and safe anytime-valid inference", Statistical Science 38 (2023).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

BETS = (0.02, 0.04, 0.08, 0.16, 0.32)
SHARE_TRIALS = 50.0  # trials that the share of the assignment counts for in w_t
_MOST_LOST = 0.5  # of the wealth, in one trial

Arms = NDArray[np.bool_]
Floats = NDArray[np.float64]


def log_evidence(challenger: Arms, outcome: Floats, weight: float, effect: float = 0.0) -> Floats:
    """log M_n after each trial, against "the challenger gains at most `effect`".

    Promote where it was ever at least log(1 / level): take its running maximum.

    Args:
        challenger: (..., n) whether the challenger served the trial's user; leading axes are separate tests.
        outcome: (..., n) in [0, 1], in the order of settlement.
        weight: the challenger's share of the assignment, in (0, 1).
        effect: the gain that is not enough, in [-1, 1].

    Raises:
        ValueError: lengths differ, or an outcome, the weight or the effect is out of its range.
    """
    if not -1 <= effect <= 1:
        raise ValueError(f"an effect is a difference of two rates, between -1 and 1, got {effect}")
    score, cap = scores(challenger, outcome, weight).against(effect)
    return log_mean([np.cumsum(log_factors(score, cap, bet), axis=-1) for bet in BETS])


def log_harm(challenger: Arms, outcome: Floats, weight: float, margin: float = 0.0) -> Floats:
    """The same against "the challenger loses at most `margin`": the process of the mirrored outcomes."""
    return log_evidence(challenger, 1.0 - np.asarray(outcome, dtype=np.float64), weight, margin)


def interval(challenger: Arms, outcome: Floats, weight: float, level: float) -> tuple[float, float]:
    """The gains that neither one-sided process rejects now, each at level / 2; (-1, 1) without trials.

    Now, not ever: the running intersection is as valid and never wider, but after a drift it is empty or speaks of
    data long gone, and what is shown should describe the trials at hand. So a test that once rejected may stand beside
    an interval that holds its effect again. M falls as the effect grows (but for rare trials at which c_t binds), hence
    an interval, whose ends are bisected.

    Raises:
        ValueError: as of `log_evidence`, or the level is not in (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"a level lies between 0 and 1, got {level}")
    enough = math.log(2 / level)
    better = scores(challenger, outcome, weight)
    worse = scores(challenger, 1.0 - np.asarray(outcome, dtype=np.float64), weight)
    return _last_rejected(better, enough), -_last_rejected(worse, enough)


@dataclass(frozen=True, slots=True)
class Past:
    """What is known before the first trial: sums over earlier trials, each a number or an array of separate tests."""

    trials: Floats | float = 0.0
    challengers: Floats | float = 0.0
    outcomes: Floats | float = 0.0


NOTHING = Past()


@dataclass(frozen=True, slots=True)
class Scores:
    """Each trial's score against effect 0, what an effect takes from it, and how negative it could have been.

    All (..., n). `risk_*` are the largest losses of a unit bet, of a trial of either arm; the second of each pair is
    what an effect adds to it.
    """

    score: Floats
    per_effect: Floats
    risk_champion: tuple[Floats, Floats]
    risk_challenger: tuple[Floats, Floats]

    def against(self, effect: float) -> tuple[Floats, Floats]:
        """x_t and c_t. A negative effect could allow larger bets; they stay, so that M falls as the effect grows."""
        if effect == 0:
            return self.score, _MOST_LOST / np.maximum(self.risk_champion[0], self.risk_challenger[0])
        more = max(effect, 0.0)
        risks = [at_zero + more * rise for at_zero, rise in (self.risk_champion, self.risk_challenger)]
        return self.score - effect * self.per_effect, _MOST_LOST / np.maximum(*risks)


def scores(challenger: Arms, outcome: Floats, weight: float, past: Past = NOTHING) -> Scores:
    """The scores of trials that come after `past`."""
    arm, y = np.asarray(challenger, dtype=np.float64), np.asarray(outcome, dtype=np.float64)
    _check(arm, y, weight)
    before = np.arange(arm.shape[-1]) + np.asarray(past.trials)[..., None]
    rate = (1.0 + _sum_before(y, past.outcomes)) / (2.0 + before)
    share = (SHARE_TRIALS * weight + _sum_before(arm, past.challengers)) / (SHARE_TRIALS + before)
    variance = rate * (1.0 - rate)
    away = arm - share
    return Scores(
        score=away * (y - rate) / variance,
        per_effect=away * away / variance,
        risk_champion=(share / rate, share * share / variance),  # a champion's trial that is all up
        risk_challenger=((1.0 - share) / (1.0 - rate), (1.0 - share) ** 2 / variance),  # a challenger's, all down
    )


def log_factors(score: Floats, cap: Floats, bet: float) -> Floats:
    """log(1 + min(d, c_t) x_t), at least -log 2."""
    return np.log1p(np.minimum(bet, cap) * score)


def log_mean(logs: Sequence[Floats]) -> Floats:
    """The log of the mean of what is given as logs, without overflow; entries of -inf count as 0."""
    highest = np.maximum.reduce(logs)
    shift = np.where(np.isfinite(highest), highest, 0.0)
    total = np.zeros_like(shift)
    for each in logs:
        total += np.exp(each - shift)
    with np.errstate(divide="ignore"):
        mean: Floats = shift + np.log(total / len(logs))
    return mean


def _last_rejected(evidence: Scores, enough: float) -> float:
    """The largest effect that "gain <= effect" is rejected at; -1 where none is."""

    def excess(effect: float) -> float:
        score, cap = evidence.against(effect)
        return float(log_mean([log_factors(score, cap, bet).sum(axis=-1) for bet in BETS])) - enough

    if excess(-1.0) < 0:
        return -1.0
    return 1.0 if excess(1.0) >= 0 else float(brentq(excess, -1.0, 1.0, xtol=1e-6))


def _sum_before(values: Floats, start: Floats | float) -> Floats:
    """Of each entry, the sum of those before it."""
    total: Floats = np.cumsum(values, axis=-1) - values + np.asarray(start)[..., None]
    return total


def _check(arm: Floats, y: Floats, weight: float) -> None:
    if arm.shape != y.shape:
        raise ValueError(f"each trial needs an arm and an outcome, got {arm.shape} arms and {y.shape} outcomes")
    if not 0 < weight < 1:
        raise ValueError(f"the challenger's share of the assignment must lie between 0 and 1, got {weight}")
    if y.size and not (y.min() >= 0 and y.max() <= 1):
        raise ValueError(f"an outcome must lie in [0, 1], got {y.min()} to {y.max()}")
