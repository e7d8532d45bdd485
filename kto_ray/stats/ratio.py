"""Two questions to counts of the two arms: are the shares those of the assignment, and are there more ups? Pure.

Both read counts only, so the order of the trials within them does not matter.

1. `log_evidence`, a sequential sample-ratio test. Where each of n trials is the challenger's with probability w, the
   Beta mixture of `sequential` over other shares q is a martingale. Among exposed users it finds a broken assignment;
   among voters it finds arms that vote at different speeds, of which no comparison of the voters can be trusted.
2. `more_ups`. Rates among voters take silence for approval: where the challenger's unhappy users keep still, its rate
   rises and nobody is happier. Among the trials that are up, whatever the unhappy do, the challenger's share is at most
   w unless it pleases more of those whom it serves. For an alternative share q > w,

       prod over ups of (q / w if the challenger's else (1 - q) / (1 - w))

   has, at a true share r, factors of mean (1 - q) / (1 - w) + r (q / w - (1 - q) / (1 - w)), which grows with r and
   is 1 at r = w: a supermartingale for EVERY share r <= w, not for w alone, and so is a mean over several q. They are
   put as the ratio of ups per exposed user: RATIOS times as many make a share of q = w ratio / (1 - w + w ratio).

Sources: M. Lindon, A. Malek, "Anytime-valid inference for multinomial count data", NeurIPS 2022 (sample ratio);
H. Robbins, "Statistical methods related to the law of the iterated logarithm", Ann. Math. Statist. 41 (1970)
(mixtures).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kto_ray.stats.score import log_mean
from kto_ray.stats.sequential import log_martingale

RATIOS = (1.05, 1.1, 1.2, 1.4)  # of the challenger's ups per exposed user to the champion's

Floats = NDArray[np.float64]


def log_evidence(champion: ArrayLike, challenger: ArrayLike, weight: float) -> Floats:
    """The log evidence that the challenger's share among these trials is not `weight`; counts may be arrays.

    Raises:
        ValueError: a count is negative, or the weight is not in (0, 1).
    """
    champions, challengers = _checked(champion, challenger, weight)
    return log_martingale(challengers, champions, weight)


def more_ups(champion_ups: ArrayLike, challenger_ups: ArrayLike, weight: float) -> Floats:
    """The log evidence that the challenger earns more ups per exposed user than the champion.

    A trial counts as an up where its outcome is at least a half: the bound is one on whole ups, not on fractions.

    Raises:
        ValueError: as of `log_evidence`.
    """
    champions, challengers = _checked(champion_ups, challenger_ups, weight)
    logs = []
    for ratio in RATIOS:
        share = share_of(ratio, weight)
        logs.append(challengers * np.log(share / weight) + champions * np.log((1 - share) / (1 - weight)))
    return log_mean(logs)


def share_of(ratio: float, weight: float) -> float:
    """The challenger's share of ups where it has so many times the champion's per exposed user."""
    return weight * ratio / (1 - weight + weight * ratio)


def _checked(champion: ArrayLike, challenger: ArrayLike, weight: float) -> tuple[Floats, Floats]:
    counts = np.asarray(champion, dtype=np.float64), np.asarray(challenger, dtype=np.float64)
    if not 0 < weight < 1:
        raise ValueError(f"the challenger's share of the assignment must lie between 0 and 1, got {weight}")
    if any(each.size and each.min() < 0 for each in counts):
        raise ValueError("a count of trials is negative")
    return counts
