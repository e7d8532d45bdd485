"""`kto-ray bench peeking`: how often an A/B test that is looked at after every user is ever wrong, and how soon it
decides.

Users are simulated with known rates and fall to the arms at random. The peer is the interval that dashboards show
(Wald, from the 20th user of each arm), looked at as often.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import starmap
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from scipy.stats import norm

from kto_ray.config import Config
from kto_ray.records.rollouts import ArmCount
from kto_ray.stats.sequential import log_evidence

Rates = tuple[float, float]  # of thumbs up, champion and challenger

TRUTHS: tuple[Rates, ...] = ((0.15, 0.15), (0.5, 0.5), (0.15, 0.45))
GAINS: tuple[Rates, ...] = ((0.15, 0.45), (0.3, 0.5))
FEWEST = 20  # users of each arm before the peer is looked at


def paths(rates: Rates, runs: int, users: int, weight: float = 0.5, seed: int = 0) -> NDArray[np.int64]:
    """Counts after each judged user: (runs, users, 4) of the champion's users and ups, then the challenger's."""
    random = np.random.default_rng(seed)
    new = random.random((runs, users)) < weight
    up = random.random((runs, users)) < np.where(new, rates[1], rates[0])
    return np.cumsum(np.stack([~new, ~new & up, new, new & up], axis=-1), axis=1)


def ever_misses(path: NDArray[np.int64], truth: float, alpha: float) -> bool:
    """Whether the confidence sequence excludes the true difference at any look. `path` is one run's counts."""
    looks = zip(starmap(ArmCount, path[:, :2].tolist()), starmap(ArmCount, path[:, 2:].tolist()), strict=True)
    return any(log_evidence(*arms, truth) >= math.log(1 / alpha) for arms in looks)


def wald_ever_misses(path: NDArray[np.int64], truth: float, alpha: float) -> bool:
    """The same of the textbook interval of level 1 - alpha."""
    n0, s0, n1, s1 = path.T.astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        p0, p1 = s0 / n0, s1 / n1
        error = norm.ppf(1 - alpha / 2) * np.sqrt(p0 * (1 - p0) / n0 + p1 * (1 - p1) / n1)
        return bool(np.any((np.minimum(n0, n1) >= FEWEST) & (np.abs(p1 - p0 - truth) > error)))


def decided_at(path: NDArray[np.int64], alpha: float) -> int | None:
    """Users, of both arms together, after which the sequence first lies above zero; None if it never does."""
    for users, (n0, s0, n1, s1) in enumerate(path.tolist(), 1):
        if n0 and n1 and s1 / n1 > s0 / n0 and log_evidence(ArmCount(n0, s0), ArmCount(n1, s1), 0) >= -math.log(alpha):
            return users
    return None


def bench_peeking(config: Config, runs: int, users: int, patience: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Simulate.

    Args:
        config: rollout.alpha is used.
        runs: A/B tests of each pair of rates.
        users: looks of a test whose errors are counted, one after each user.
        patience: users after which a test that should find a gain gives up.
    """
    alpha = config.rollout.alpha
    errors = []
    for rates in TRUTHS:
        truth = rates[1] - rates[0]
        simulated = paths(rates, runs, users)
        wrong = sum(ever_misses(path, truth, alpha) for path in simulated) / runs
        wald = sum(wald_ever_misses(path, truth, alpha) for path in simulated) / runs
        errors.append({"rates": rates, "ever_wrong_share": wrong, "wald_ever_wrong_share": wald})
        tell(f"{rates[0]:g}, {rates[1]:g}: ever wrong {wrong:.1%}, looked-at Wald {wald:.1%}")
    decisions = []
    for rates in GAINS:
        needed = [decided_at(path, alpha) for path in paths(rates, runs, patience, seed=1)]
        decisions.append({"rates": rates, "users_an_arm": _median_of_all(needed, patience) / 2})
        tell(f"{rates[0]:g} against {rates[1]:g}: decided after {decisions[-1]['users_an_arm']:.0f} users an arm")
    report = {
        "alpha": alpha, "runs": runs, "users": users, "patience": patience, "errors": errors, "decisions": decisions,
    }  # fmt: skip
    return report


def _median_of_all(needed: Sequence[int | None], patience: int) -> float:
    """The undecided ones count as the latest."""
    return median(patience if users is None else users for users in needed)


def table(report: dict[str, Any]) -> Table:
    shown = Table("champion, challenger", "confidence sequence", "interval looked at each time", title="ever wrong")
    for row in report["errors"]:
        wrong, wald = row["ever_wrong_share"], row["wald_ever_wrong_share"]
        shown.add_row("{:g}, {:g}".format(*row["rates"]), f"{wrong:.1%}", f"{wald:.1%}")
    for row in report["decisions"]:
        shown.add_row("{:g}, {:g}".format(*row["rates"]), f"decided after {row['users_an_arm']:.0f} users an arm", "")
    return shown
