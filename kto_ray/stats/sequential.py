"""An anytime-valid confidence sequence for the difference of two thumbs-up rates, p1 - p0 (challenger - champion).

One may look after every single thumb, stop whenever one likes, and the chance that the interval EVER excludes the
truth is still at most alpha. That is what an automatic rollout needs: a fixed-n interval that is looked at again and
again excludes the truth sooner or later with certainty.

The unit is a user: a Bernoulli trial is the FIRST judgement of a user within the deciding stage. One user's thumbs
are correlated, and counting them all would make the data look like more than it is.

Why it is valid. Let an arm have s ups among n users, each up with probability p given what was seen before. For a
Beta(a, b) mixture over alternatives q,

    M_n(p) = integral of (q^s (1-q)^(n-s)) / (p^s (1-p)^(n-s)) dBeta(q; a, b)
    log M_n(p) = log B(a + s, b + n - s) - log B(a, b) - s log p - (n - s) log(1 - p)

is a likelihood ratio against the truth p averaged over q: a non-negative martingale with M_0 = 1 (Robbins 1970). The
product of both arms' martingales at the true (p0, p1) is one too, in whatever order the users come, because
each user's judgement multiplies one factor by something whose mean, given the past, is 1. Ville's inequality then
gives P(exists n: M(p0) M(p1) >= 1/alpha) <= alpha. For a difference delta the nuisance p0 is dealt with by the
infimum, which at the true delta is never above the product at the truth:

    E(delta) = inf over p0 of M_champion(p0) M_challenger(p0 + delta)
    CS = {delta: E(delta) < 1/alpha},   P(exists n: truth not in CS_n) <= alpha.

log E is convex in delta (a partial minimum of a jointly convex function), so CS is an interval around the observed
difference.

Sources: H. Robbins, "Statistical methods related to the law of the iterated logarithm", Ann. Math. Statist. 41 (1970);
S. Howard, A. Ramdas, J. McAuliffe, J. Sekhon, "Time-uniform, nonparametric, nonasymptotic confidence sequences",
Ann. Statist. 49 (2021); I. Waudby-Smith, A. Ramdas, "Estimating means of bounded random variables by betting",
JRSS-B 86 (2024), first as arXiv:2010.09686.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import betaln, xlog1py, xlogy

from kto_ray.records.rollouts import ArmCount

PRIOR_A, PRIOR_B = 1.0, 1.0  # the mixture: any choice is valid, a uniform one is good for no rate in particular
_EDGE = 1e-12

Count = float | NDArray[np.int64] | NDArray[np.float64]


def interval(champion: ArmCount, challenger: ArmCount, alpha: float) -> tuple[float, float]:
    """The confidence sequence's present interval for p_challenger - p_champion, within [-1, 1].

    Takes well under a millisecond to a few. An arm without users gives no information: with none in both it is (-1, 1).

    Raises:
        ValueError: a count is impossible (up < 0 or up > users) or alpha is not in (0, 1).
    """
    _check(champion, challenger, alpha)
    threshold = -math.log(alpha)
    middle = _rate(challenger) - _rate(champion)

    def excess(delta: float) -> float:
        # capped, because log E is infinite where a seen outcome would be impossible and brentq wants finite values
        return min(log_evidence(champion, challenger, delta) - threshold, 10.0)

    low = -1.0 if excess(-1.0) < 0 else float(brentq(excess, -1.0, middle, xtol=1e-9))
    high = 1.0 if excess(1.0) < 0 else float(brentq(excess, middle, 1.0, xtol=1e-9))
    return low, high


def log_evidence(champion: ArmCount, challenger: ArmCount, delta: float) -> float:
    """log E(delta): the log evidence against p_challenger - p_champion = delta; infinite where delta is impossible."""
    p = _least_favourable(champion, challenger, delta)
    return _log_martingale(champion, p) + _log_martingale(challenger, min(1.0, max(0.0, p + delta)))


def log_martingale(ups: Count, downs: Count, p: float | NDArray[np.float64]) -> NDArray[np.float64]:
    """log M_n(p) of one arm's counts, or of arrays; 0 without trials, infinite where one seen is impossible."""
    mixture = betaln(PRIOR_A + ups, PRIOR_B + downs) - betaln(PRIOR_A, PRIOR_B)
    evidence: NDArray[np.float64] = mixture - xlogy(ups, p) - xlog1py(downs, -p)
    return evidence


def _log_martingale(arm: ArmCount, p: float) -> float:
    return float(log_martingale(arm.up, arm.users - arm.up, p))


def _least_favourable(champion: ArmCount, challenger: ArmCount, delta: float) -> float:
    """The p0 that minimises M(p0) M(p0 + delta): the root of a cubic.

    The derivative of the log, times p(1-p)q(1-q) with q = p + delta, is (n0 p - s0) q (1-q) + (n1 q - s1) p (1-p). It
    has the derivative's sign inside the domain and, unlike it, no poles at the ends.
    """
    low, high = max(0.0, -delta), min(1.0, 1.0 - delta)
    if high - low < 2 * _EDGE:
        return low

    def slope(p: float) -> float:
        q = p + delta
        return (champion.users * p - champion.up) * q * (1 - q) + (challenger.users * q - challenger.up) * p * (1 - p)

    # a step inside, because the multiplied slope has spurious roots at the very ends
    inner_low, inner_high = low + _EDGE * (high - low), high - _EDGE * (high - low)
    if slope(inner_low) >= 0:
        return low
    if slope(inner_high) <= 0:
        return high
    return float(brentq(slope, inner_low, inner_high, xtol=1e-13))


def _rate(arm: ArmCount) -> float:
    return arm.up / arm.users if arm.users else 0.5


def _check(champion: ArmCount, challenger: ArmCount, alpha: float) -> None:
    for name, arm in (("champion", champion), ("challenger", challenger)):
        if not 0 <= arm.up <= arm.users:
            raise ValueError(f"the {name}'s count is impossible: {arm.up} ups among {arm.users} users")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, got {alpha}")
