"""A difference of two means over many strata (weeks that were drawn anew), with an interval that always holds. Pure.

Stratum k has m trials of one arm and n of the other, with outcomes in [0, 1]; d is the difference of their means, and
what it can tell is h = m n / (m + n), the size of an arm beside an endless other one. The estimate

    D = sum of h d / sum of h

is W. G. Cochran's and N. Mantel and W. Haenszel's: each stratum compares what lived through the same days, so that a
drift which both arms share is no difference, and counts by what it can tell. It estimates the same mean of the true
differences, which may change from one stratum to the next: nothing says that they are one figure.

Why the interval is valid. Given who judged, the outcomes of a stratum are independent and lie in [0, 1], so h (d - its
true difference) is sub-Gaussian with variance h / 4 at most (Hoeffding's lemma), whatever came before. With S the sum
of these and V = sum of h / 4, exp(l S - l^2 V / 2) is a supermartingale for every l, and so is its mean over
l ~ N(0, 1 / PRIOR) (Robbins' normal mixture). Ville's inequality then gives

    P(after any stratum |S| >= sqrt((V + PRIOR) log((V + PRIOR) / (PRIOR alpha^2)))) <= alpha

and dividing by the sum of h an interval around D. It holds at the ends of strata, so strata enter whole. That the
variance is taken as 1/4 costs little between rates of 0.3 and 0.7, and makes it exact for few trials.

Sources: W. G. Cochran, "Some methods for strengthening the common chi-squared tests", Biometrics 10 (1954); W.
Hoeffding, "Probability inequalities for sums of bounded random variables", JASA 58 (1963); H. Robbins, "Statistical
methods related to the law of the iterated logarithm", Ann. Math. Statist. 41 (1970); S. Howard, A. Ramdas, J.
McAuliffe, J. Sekhon, "Time-uniform, nonparametric, nonasymptotic confidence sequences", Ann. Statist. 49 (2021).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from kto_ray.records.rollouts import ArmCount

PRIOR = 10.0  # any is valid; this one's interval is tightest, for its V, at some 400 trials of the smaller arm


@dataclass(frozen=True, slots=True)
class Strata:
    """Sums over the strata in which both arms had trials: of these, of what they can tell, and of that by the
    difference, one - other."""

    strata: int = 0
    one: int = 0  # trials
    other: int = 0
    information: float = 0.0
    difference: float = 0.0

    @property
    def mean(self) -> float | None:
        """The estimate; None where there is none yet."""
        return self.difference / self.information if self.information else None


def fold(sums: Strata, one: ArmCount, other: ArmCount) -> Strata:
    """The sums with one stratum more, unchanged where an arm of it had no trial."""
    if not one.users or not other.users:
        return sums
    tells = one.users * other.users / (one.users + other.users)
    return Strata(
        sums.strata + 1,
        sums.one + one.users,
        sums.other + other.users,
        sums.information + tells,
        sums.difference + tells * (one.up / one.users - other.up / other.users),
    )


def interval(sums: Strata, alpha: float) -> tuple[float, float]:
    """The always-valid interval of the mean difference, within [-1, 1].

    Raises:
        ValueError: alpha is not in (0, 1).
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, got {alpha}")
    if sums.mean is None:
        return -1.0, 1.0
    spread = sums.information / 4 + PRIOR
    half = math.sqrt(spread * math.log(spread / (PRIOR * alpha * alpha))) / sums.information
    return max(-1.0, sums.mean - half), min(1.0, sums.mean + half)
