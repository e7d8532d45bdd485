"""How many voters a gain needs, and which gain so many voters can show. Pure.

By the score test: under a true gain, log M of the best bet is close to a Brownian motion of drift 1/2 and variance 1,
in units of the information

    J = voters weight (1 - weight) (gain - effect)^2 / (p (1 - p)),   p the pooled rate, effect the gain not enough.

(With a fixed number of voters the standard formula is J = (z_level + z_power)^2.) It promotes on reaching
log(1 / level) + PRICE, where PRICE is what the mean over bets costs against the best of them. The first passage of
such a motion is inverse Gaussian with mean 2 b and shape b^2 for a barrier b: its 80% quantile is the information that
promotes in four of five runs. At a level of 5% this is 12.1, and 11.6 / gain^2 voters near a rate of 0.6.

By `ratio.more_ups`, which a promotion needs, too: of the voters p are ups, of which the challenger's share is
weight (rate + gain) / p. Each of its bets is a random walk over ups, of a drift and a variance that are known, and the
first passage of the best one is what counts. Its bets stand apart, so that of a mean over them one pays for nearly all:
UPS_PRICE. What both need is close to independent where neither is sure; the chance of both is put as the product, which
is a little too low, for good luck serves both.

`kto-ray bench decisions` measures how often so many voters do promote.

Source: A. Wald, "Sequential Analysis" (1947), appendix 6 (the first passage).
"""

from __future__ import annotations

import math

from scipy.optimize import brentq
from scipy.special import log_ndtr
from scipy.stats import invgauss

from kto_ray.stats.ratio import RATIOS, share_of

POWER = 0.8
PRICE = 1.3  # nats; at most log 5, for neighbouring bets win too
UPS_PRICE = 1.0  # nats; at most log 4


def voters_needed(gain: float, rate: float, level: float, weight: float = 0.5) -> float:
    """Voters, of both arms, within which the score test alone finds a true gain with 80%.

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
    barrier = math.log(1 / level) + PRICE
    information = float(invgauss.ppf(POWER, 2 / barrier, scale=barrier * barrier))
    return information / _information(1.0, gain, rate, weight)


def promoted(
    voters: float, gain: float, rate: float, level: float, ups_level: float, weight: float = 0.5, effect: float = 0.0
) -> float:
    """The chance that so many voters show a true gain: by the score test, as one above `effect`, at `level`, and by
    more ups per exposed user, at `ups_level`."""
    barrier = math.log(1 / level) + PRICE
    information = _information(voters, gain - effect, rate + weight * effect, weight) if gain > effect else 0.0
    shown = float(invgauss.cdf(information, 2 / barrier, scale=barrier * barrier))
    return shown * _more_ups(voters, gain, rate, ups_level, weight)


def detectable(
    voters: float, rate: float, level: float, ups_level: float, weight: float = 0.5, effect: float = 0.0
) -> float:
    """The least gain that so many voters promote with 80%; infinite where not even a rate of 1 would be.

    Raises:
        ValueError: the rate is not in [0, 1), or a level or the weight is not in (0, 1).
    """
    if not 0 <= rate < 1:
        raise ValueError(f"the champion's rate must lie in [0, 1) for a gain to be possible, got {rate}")
    _check(level, weight)
    _check(ups_level, weight)
    most = 1 - rate

    def missing(gain: float) -> float:
        return POWER - promoted(voters, gain, rate, level, ups_level, weight, effect)

    if voters <= 0 or missing(most) > 0:
        return math.inf
    least = min(1e-6, most / 2)
    return least if missing(least) <= 0 else float(brentq(missing, least, most, xtol=1e-9))


def _information(voters: float, gain: float, rate: float, weight: float) -> float:
    pooled = rate + weight * gain
    variance = pooled * (1 - pooled)
    return voters * weight * (1 - weight) * gain * gain / variance if variance > 0 else math.inf


def _more_ups(voters: float, gain: float, rate: float, level: float, weight: float) -> float:
    pooled = rate + weight * gain
    true = weight * (rate + gain) / pooled
    barrier = math.log(1 / level) + UPS_PRICE
    chances = []
    for ratio in RATIOS:
        bet = share_of(ratio, weight)
        up, down = math.log(bet / weight), math.log((1 - bet) / (1 - weight))
        drift, variance = true * up + (1 - true) * down, true * (1 - true) * (up - down) ** 2
        chances.append(_passage(voters * pooled, drift, variance, barrier))
    return max(chances)


def _passage(steps: float, drift: float, variance: float, barrier: float) -> float:
    """The chance that a Brownian motion has reached a barrier; where it has no variance, or no time, whether it has."""
    if variance * steps <= 0:
        return float(drift * steps >= barrier)
    spread = math.sqrt(variance * steps)
    beyond = float(log_ndtr((drift * steps - barrier) / spread))
    returned = 2 * drift * barrier / variance + float(log_ndtr((-barrier - drift * steps) / spread))
    return min(1.0, math.exp(beyond) + math.exp(min(0.0, returned)))


def _check(level: float, weight: float) -> None:
    for name, value in (("level", level), ("weight", weight)):
        if not 0 < value < 1:
            raise ValueError(f"the {name} must lie between 0 and 1, got {value}")
