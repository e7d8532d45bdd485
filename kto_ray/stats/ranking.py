"""Figures on rewards: how well they rank, with intervals. Pure.

Rewards are KTO's implied rewards of held-out answers (one number a row); intervals resample users, not rows, because
the rows of one user share that user's taste.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def auc(desirable: Sequence[float] | Floats, undesirable: Sequence[float] | Floats) -> float:
    """The chance that a desirable answer has the higher reward than an undesirable one; a tie counts one half.

    The Mann-Whitney statistic. 0.5 says nothing learnt: a policy equal to its reference has all rewards 0, all ties.
    NaN where a reward is NaN.

    Raises:
        ValueError: a class is empty.
    """
    good, bad = _both(desirable, undesirable)
    if np.isnan(good).any() or np.isnan(bad).any():
        return float("nan")
    groups = _tie_groups(good, bad)
    return _weighted_auc(groups, np.ones(good.size), np.ones(bad.size))


def balanced_accuracy(
    desirable: Sequence[float] | Floats, undesirable: Sequence[float] | Floats, threshold: float
) -> float:
    """The mean of both classes' shares on their side of the threshold; a reward equal to it counts one half.

    Unlike plain accuracy it is 0.5 for a constant reward at the threshold, whatever the ratio of the classes.
    NaN where a reward or the threshold is NaN.

    Raises:
        ValueError: a class is empty.
    """
    good, bad = _both(desirable, undesirable)
    return float((_above(good, threshold).mean() + 1 - _above(bad, threshold).mean()) / 2)


@dataclass(frozen=True, slots=True)
class Interval:
    low: float
    high: float


def bootstrap(
    rewards: Sequence[float] | Floats,
    desirable: Sequence[bool] | NDArray[np.bool_],
    users: Sequence[str],
    threshold: float,
    confidence: float,
    resamples: int,
    seed: int = 0,
) -> tuple[Interval, Interval]:
    """Percentile intervals of AUC and of balanced accuracy from a cluster bootstrap over users.

    Each resample draws as many users as there are, with replacement, and takes all their rows (Field & Welsh 2007).
    A resample that lacks a class says nothing and is left out; (0, 1) where all do, NaN where a reward is NaN.
    Returns the intervals of (AUC, balanced accuracy).

    Raises:
        ValueError: lengths differ, or one class has no row at all.
    """
    values, labels = np.asarray(rewards, dtype=np.float64), np.asarray(desirable, dtype=np.bool_)
    if not values.size == labels.size == len(users):
        raise ValueError(f"rewards, labels and users differ in length: {values.size}, {labels.size}, {len(users)}")
    good, bad = _both(values[labels], values[~labels])
    names, codes = np.unique(np.asarray(users), return_inverse=True)
    good_user, bad_user = codes[labels], codes[~labels]
    if np.isnan(values).any() or np.isnan(threshold):
        return Interval(float("nan"), float("nan")), Interval(float("nan"), float("nan"))
    good_above, bad_above, groups = _above(good, threshold), _above(bad, threshold), _tie_groups(good, bad)
    random = np.random.default_rng(seed)
    aucs, accuracies = [], []
    for _ in range(resamples):
        times = np.bincount(random.integers(names.size, size=names.size), minlength=names.size).astype(np.float64)
        good_weight, bad_weight = times[good_user], times[bad_user]
        if good_weight.sum() == 0 or bad_weight.sum() == 0:
            continue
        aucs.append(_weighted_auc(groups, good_weight, bad_weight))
        hit = good_weight @ good_above / good_weight.sum()
        false = bad_weight @ bad_above / bad_weight.sum()
        accuracies.append((hit + 1 - false) / 2)
    return _percentiles(aucs, confidence), _percentiles(accuracies, confidence)


def _both(desirable: Sequence[float] | Floats, undesirable: Sequence[float] | Floats) -> tuple[Floats, Floats]:
    good, bad = np.asarray(desirable, dtype=np.float64), np.asarray(undesirable, dtype=np.float64)
    if good.size == 0 or bad.size == 0:
        raise ValueError(f"both classes need a row, got {good.size} desirable and {bad.size} undesirable")
    return good, bad


def _above(values: Floats, threshold: float) -> Floats:
    side: Floats = (np.sign(values - threshold) + 1) / 2
    return side


def _tie_groups(good: Floats, bad: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Each row's place among the distinct rewards, ascending."""
    _, group = np.unique(np.concatenate([good, bad]), return_inverse=True)
    return group[: good.size], group[good.size :]


def _weighted_auc(groups: tuple[NDArray[np.intp], NDArray[np.intp]], good_weight: Floats, bad_weight: Floats) -> float:
    count = int(max(groups[0].max(), groups[1].max())) + 1
    good = np.bincount(groups[0], weights=good_weight, minlength=count)
    bad = np.bincount(groups[1], weights=bad_weight, minlength=count)
    below = np.cumsum(bad) - bad / 2
    return float(good @ below / (good.sum() * bad.sum()))


def _percentiles(values: list[float], confidence: float) -> Interval:
    if not values:
        return Interval(0.0, 1.0)
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))
