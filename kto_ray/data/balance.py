"""How much good counts against bad, and which rows meet in a micro-batch. Pure: counts and labels in, indices out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

WARN_RATIO = 10
REFUSE_RATIO = 100
LIKE_LENGTH = 8  # tokens

Index = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Balance:
    """Class weights of a training set, its desirable:undesirable ratio with a 95% interval, and a warning if skewed."""

    desirable_weight: float
    undesirable_weight: float
    ratio: float
    ratio_low: float
    ratio_high: float
    warning: str | None


def balance(n_desirable: int, n_undesirable: int, loss_aversion: float) -> Balance:
    """Weights that give the two classes the masses that loss_aversion asks for, whatever their counts.

    r = (w_d n_d) / (w_u n_u) = 1 / loss_aversion (KTO, arXiv 2402.01306, equation 8). Of the weights that satisfy it,
    these have mean 1 over the rows: the expected size of a gradient step, and so the meaning of the learning rate,
    does not change with the imbalance. (Capping the larger weight at 1 instead would shrink every step at 10:1 to a
    fifth.)

    Raises:
        ValueError: a class is missing, or the ratio lies beyond 1:100.
    """
    _refuse(n_desirable, n_undesirable)
    n = n_desirable + n_undesirable
    r = 1 / loss_aversion
    low, high = _wilson(n_desirable, n)
    return Balance(
        desirable_weight=n * r / ((1 + r) * n_desirable),
        undesirable_weight=n / ((1 + r) * n_undesirable),
        ratio=n_desirable / n_undesirable,
        ratio_low=low / (1 - low),
        ratio_high=high / (1 - high),
        warning=_warning(n_desirable, n_undesirable),
    )


def _wilson(k: int, n: int) -> tuple[float, float]:
    """The 95% Wilson interval of the share k/n; open at both ends, since neither class is empty."""
    z = 1.959963984540054
    centre = (k + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(k * (n - k) / n + z * z / 4)
    return centre - half, centre + half


def _refuse(n_desirable: int, n_undesirable: int) -> None:
    few = "desirable" if n_desirable < n_undesirable else "undesirable"
    least, most = sorted((n_desirable, n_undesirable))
    missing = max(1, math.ceil(most / REFUSE_RATIO)) - least
    if least == 0 or most > REFUSE_RATIO * least:
        raise ValueError(
            f"training set holds {n_desirable} desirable and {n_undesirable} undesirable rows, and KTO learns from "
            f"both: at least {missing} more {few} row{'s' if missing > 1 else ''} needed (ratio at most "
            f"{REFUSE_RATIO}:1); collect more {few} feedback"
        )


def _warning(n_desirable: int, n_undesirable: int) -> str | None:
    least, most = sorted((n_desirable, n_undesirable))
    if most <= WARN_RATIO * least:
        return None
    few = "desirable" if n_desirable < n_undesirable else "undesirable"
    return (
        f"{n_desirable} desirable to {n_undesirable} undesirable rows lies outside 1:{WARN_RATIO} .. {WARN_RATIO}:1: "
        f"the weights correct the mass, but each of the {least} {few} rows counts {most / least:.0f} times"
    )


def interleave(
    desirable: NDArray[np.bool_], prompt: Index, length: NDArray[np.integer[Any]], micro_batch: int, seed: int
) -> Index:
    """An order in which every micro-batch has both classes, as far as the smaller class reaches, and like lengths.

    Each class is spread evenly over the micro-batches, from its shortest rows to its longest, so that little of a
    padded micro-batch is padding; then the micro-batches are shuffled. The rows that do not fill a micro-batch are
    left out, each from the class that is larger at that point, so that leaving out never skews the ratio. Inside a
    micro-batch no row follows one with the same prompt (cyclically), unless one prompt fills more than half of it:
    the KL term needs a completion of another prompt, and `rotate` takes the neighbour's.

    Args:
        desirable: (n,) labels.
        prompt: (n,) an integer that is equal for rows with equal prompts.
        length: (n,) tokens of prompt and answer.
        micro_batch: rows of a step on one worker.
        seed: decides among the orders.

    Returns:
        (n - n % micro_batch,) row indices; each run of `micro_batch` of them is a micro-batch.
    """
    generator = np.random.default_rng(seed)
    good = generator.permutation(np.flatnonzero(desirable))
    bad = generator.permutation(np.flatnonzero(~desirable))
    for _ in range(len(desirable) % micro_batch):
        if len(good) > len(bad):
            good = good[:-1]
        else:
            bad = bad[:-1]
    batches = (len(good) + len(bad)) // micro_batch
    minor, major = sorted((_by_length(good, length), _by_length(bad, length)), key=len)
    cuts = np.arange(batches + 1) * len(minor) // max(batches, 1)
    order = np.empty((batches, micro_batch), np.int64)
    for b in range(batches):
        # major's cut is what minor's leaves of b * micro_batch rows
        rest = slice(b * micro_batch - cuts[b], (b + 1) * micro_batch - cuts[b + 1])
        order[b] = generator.permutation(np.concatenate([minor[cuts[b] : cuts[b + 1]], major[rest]]))
    of_prompt = np.sort(prompt[order], axis=1)
    for b in np.flatnonzero((of_prompt[:, 1:] == of_prompt[:, :-1]).any(axis=1)):
        order[b] = _apart(order[b], prompt[order[b]])
    return order[generator.permutation(batches)].reshape(-1)


def _by_length(rows: Index, length: NDArray[np.integer[Any]]) -> Index:
    """Shortest first; chance, not the row number, decides among rows that differ by less than LIKE_LENGTH."""
    return rows[np.argsort(length[rows] // LIKE_LENGTH, kind="stable")]


def _apart(rows: Index, prompt: Index) -> Index:
    """The rows with equal prompts kept apart: sorted by how often their prompt occurs, then dealt to every second
    place. A run that starts at place 0 and fills at most half of the places has no cyclic neighbours."""
    _, inverse, counts = np.unique(prompt, return_inverse=True, return_counts=True)
    by_count = np.lexsort((inverse, -counts[inverse]))
    places = np.concatenate([np.arange(0, len(rows), 2), np.arange(1, len(rows), 2)])
    apart = np.empty_like(rows)
    apart[places] = rows[by_count]
    return apart


def rotate(rows: int, micro_batch: int) -> Index:
    """Where each row takes its KL completion from: the row before it, the first row of a micro-batch from its last.

    The pairs are TRL's (`KTOTrainer._prepare_dataset`): mismatched, and over a micro-batch the same set of
    completions as the matched pairs.

    Returns:
        (rows,) row indices.
    """
    assert rows % micro_batch == 0 and micro_batch > 1, (rows, micro_batch)
    return np.roll(np.arange(rows).reshape(-1, micro_batch), 1, axis=1).reshape(-1)
