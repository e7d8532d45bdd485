"""Simulated A/B tests, many at once: how their users are drawn, and whether a rule ever promotes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from scipy.stats import norm

from kto_ray.rollout.machine import UPS_ALPHA
from kto_ray.stats import ratio, score
from kto_ray.stats.score import Arms, Floats

LEVEL = 0.05
HELD = 0.01  # the level at which unequal shares of voters hold a promotion
AT_ONCE = 3_000_000  # trials in memory


@dataclass(frozen=True, slots=True)
class Trials:
    """(tests, n) trials in the order of settlement."""

    challenger: Arms
    outcome: Floats


Draw = Callable[[Generator, int], Trials]  # so many tests


def voters(n: int, rates: tuple[float, float], weight: float = 0.5, quieter: float = 0.0) -> Draw:
    """Users who vote: champion's and challenger's rate of ups among all who are served.

    `quieter` is the share of the challenger's unhappy users who do not vote.
    """
    masses = np.array(
        [(1 - weight) * (1 - rates[0]), (1 - weight) * rates[0], weight * (1 - rates[1]), weight * rates[1]]
    )
    masses[2] *= 1 - quieter
    edges = np.cumsum(masses / masses.sum())

    def draw(random: Generator, tests: int) -> Trials:
        at = random.random((tests, n))
        up = ((at >= edges[0]) & (at < edges[1])) | (at >= edges[2])
        return Trials(at >= edges[1], up.astype(np.float64))

    return draw


def over(draw: Draw, n: int, tests: int, seed: int, rule: Callable[[Trials], Any]) -> Any:
    """What `rule` says of each of so many tests of n trials."""
    return portions(lambda random, count: rule(draw(random, count)), n, tests, seed)


def portions(make: Callable[[Generator, int], Any], n: int, tests: int, seed: int) -> Any:
    """What `make` says of so many tests, a portion at a time that fits into memory."""
    random = np.random.default_rng(seed)
    portion = max(1, AT_ONCE // n)
    found = [make(random, min(portion, tests - begun)) for begun in range(0, tests, portion)]
    return np.concatenate(found, axis=0)


def first(reached: Arms) -> Any:
    """The number of trials after which it first holds; infinite where it never does."""
    return np.where(reached.any(axis=-1), reached.argmax(axis=-1) + 1.0, math.inf)


def reached(log_evidence: Floats, level: float) -> Arms:
    """Whether it was ever enough, up to each trial."""
    return np.maximum.accumulate(log_evidence, axis=-1) >= -math.log(level)


def rules(trials: Trials, weight: float = 0.5, level: float = LEVEL) -> Arms:
    """(tests, 2): promoted at a level by the score alone, and as the loop decides."""
    return highest(trials, weight) >= -math.log(level)


def highest(trials: Trials, weight: float = 0.5) -> Floats:
    """(tests, 2): the most evidence of a gain, by the score alone; and of that, what had come by a moment with more ups
    at the level of `rollout/machine` and no hold on unequal shares of voters. As there, evidence of a gain stays, and
    the others are as they are at that moment."""
    arm, up = trials.challenger, trials.outcome >= 0.5
    gain = np.maximum.accumulate(score.log_evidence(arm, trials.outcome, weight), axis=-1)
    counts = np.cumsum(arm, axis=-1)
    unequal = ratio.log_evidence(np.arange(1, arm.shape[-1] + 1) - counts, counts, weight) >= -math.log(HELD)
    ups = ratio.more_ups(np.cumsum(~arm & up, axis=-1), np.cumsum(arm & up, axis=-1), weight)
    together = np.where((ups >= -math.log(UPS_ALPHA)) & ~unequal, gain, -math.inf)
    return np.stack([gain[..., -1], together.max(axis=-1)], axis=-1)


def share(hits: Arms) -> dict[str, float]:
    """With a 95% interval (Wilson 1927)."""
    n, p, z = hits.size, float(hits.mean()), float(norm.ppf(0.975))
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return {"share": p, "low_share": (middle - half) / scale, "high_share": (middle + half) / scale, "tests": n}
