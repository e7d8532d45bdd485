"""How many voters a gain needs, and which gain so many voters can show, by the score test. Pure.

Under a true gain, log M of the best bet is close to a Brownian motion of drift 1/2 and variance 1, in units of the
information

    J = voters weight (1 - weight) gain^2 / (p (1 - p)),   p the pooled rate.

(With a fixed number of voters the standard formula is J = (z_level + z_power)^2.) It promotes on reaching
log(1 / level) + PRICE, where PRICE is what the mean over bets costs against the best of them. The first passage of
such a motion is inverse Gaussian with mean 2 b and shape b^2 for a barrier b: its 80% quantile is the information that
promotes in four of five runs. At a level of 5% this is 12.1, and 11.6 / gain^2 voters near a rate of 0.6.
`kto-ray bench decisions` measures how often so many voters do promote.

Source: A. Wald, "Sequential Analysis" (1947), appendix 6 (the first passage).
"""

from __future__ import annotations

import math

from scipy.optimize import brentq
from scipy.stats import invgauss

POWER = 0.8
PRICE = 1.3  # nats; at most log 5, for neighbouring bets win too


def voters_needed(gain: float, rate: float, level: float, weight: float = 0.5) -> float:
    """Voters, of both arms, within which a true gain is promoted with 80%.

    Args:
        gain: of the challenger, positive.
        rate: the champion's.
        level: of the test, one-sided.
        weight: the challenger's share of the voters.

    Raises:
        ValueError: the gain does not fit between the rate and 1, or the level or the weight is not in (0, 1).
    """
    if not 0 < gain <= 1 - rate or not rate >= 0:
        raise ValueError(f"a gain must be positive and end at most at a rate of 1, got {gain} above {rate}")
    _check(level, weight)
    pooled = rate + weight * gain
    return _information(level) * pooled * (1 - pooled) / (weight * (1 - weight) * gain * gain)


def detectable(voters: float, rate: float, level: float, weight: float = 0.5) -> float:
    """The least gain that so many voters promote with 80%; infinite where not even a rate of 1 would be.

    Raises:
        ValueError: the rate is not in [0, 1), or the level or the weight is not in (0, 1).
    """
    if not 0 <= rate < 1:
        raise ValueError(f"the champion's rate must lie in [0, 1) for a gain to be possible, got {rate}")
    _check(level, weight)
    most = 1 - rate

    def missing(gain: float) -> float:
        return voters_needed(gain, rate, level, weight) - voters

    if voters <= 0 or missing(most) > 0:
        return math.inf
    least = min(1e-6, most / 2)
    return least if missing(least) <= 0 else float(brentq(missing, least, most, xtol=1e-9))


def _information(level: float) -> float:
    """The 80% quantile of the information at which the barrier is first reached."""
    barrier = math.log(1 / level) + PRICE
    return float(invgauss.ppf(POWER, 2 / barrier, scale=barrier * barrier))


def _check(level: float, weight: float) -> None:
    for name, value in (("level", level), ("weight", weight)):
        if not 0 < value < 1:
            raise ValueError(f"the {name} must lie between 0 and 1, got {value}")
