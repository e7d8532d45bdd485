"""Figures on rewards: how well they rank, alone and against another's, with intervals. Pure.

Rewards are KTO's implied rewards of held-out answers (one number a row); intervals resample users, not rows, because
the rows of one user share that user's taste.

How the bootstrap is fast: AUC is a ratio of two quadratic forms. With M[u, v] the pairs of an up of user u and a down
of user v that are in order, P[u, v] all such pairs, and w how often a resample drew each user, AUC(w) = w'Mw / w'Pw.
So rows are compared once, and a resample costs what users cost.
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
    ordered = np.sort(bad)
    below = (np.searchsorted(ordered, good, "left") + np.searchsorted(ordered, good, "right")) / 2
    return float(below.mean() / bad.size)


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


NOT_A_NUMBER = Interval(float("nan"), float("nan"))


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
    if np.isnan(values).any() or np.isnan(threshold):
        return NOT_A_NUMBER, NOT_A_NUMBER
    codes, times = _resample(users, resamples, seed)
    pairs = _Pairs(labels, codes, np.zeros(values.size, dtype=np.intp))
    in_order, every = pairs.by_users(_in_order(good, bad)), pairs.by_users()
    aucs = _share(_form(times, in_order), _form(times, every))
    good_weight, bad_weight = times[:, codes[labels]], times[:, codes[~labels]]
    hit = _share(good_weight @ _above(good, threshold), good_weight.sum(axis=1))
    false = _share(bad_weight @ _above(bad, threshold), bad_weight.sum(axis=1))
    return _percentiles(aucs, confidence, (0.0, 1.0)), _percentiles((hit + 1 - false) / 2, confidence, (0.0, 1.0))


def strata(lengths: Sequence[float] | Floats, count: int) -> NDArray[np.intp]:
    """The stratum of each row: `count` groups of like length and about equal size, fewer where many are equal."""
    edges = np.unique(np.quantile(np.asarray(lengths), np.arange(1, count) / count))
    found: NDArray[np.intp] = np.searchsorted(edges, np.asarray(lengths), side="left")
    return found


@dataclass(frozen=True, slots=True)
class Paired:
    """Two AUCs on the same rows, within strata, and their difference; 0.5 and (-1, 1) where no stratum has a pair."""

    candidate: float
    champion: float
    gain: float
    gain_bounds: Interval


def paired(
    candidate: Sequence[float] | Floats,
    champion: Sequence[float] | Floats,
    desirable: Sequence[bool] | NDArray[np.bool_],
    users: Sequence[str],
    stratum: Sequence[int] | NDArray[np.intp],
    confidence: float,
    resamples: int,
    seed: int = 0,
) -> Paired:
    """AUC(candidate) - AUC(champion) within strata, with the percentile interval of a cluster bootstrap over users.

    An AUC within strata compares an up with the downs of its own stratum only: the mean of the strata's AUCs, each
    counted by its pairs. Where strata are of like length it asks what rewards know beyond length, since a policy that
    merely talks longer or shorter lowers the probability of all long or all short answers alike.
    Both rewards see the same resamples, so what makes a user hard to please cancels. A champion of equal rewards (the
    base model, whose rewards are 0) has AUC 0.5 in every resample.

    What is resampled is the difference's linear part, the sum of users' influences (its derivatives by their weights;
    the infinitesimal jackknife of Efron 1982). The difference itself, w'Dw / w'Pw, also holds products of two users'
    weights, and where strata are small, chance in those is resampled on top of the chance that the data already show:
    such an interval is too wide, the more the finer the strata.

    Raises:
        ValueError: lengths differ, or one class has no row at all.
    """
    labels, group = np.asarray(desirable, dtype=np.bool_), np.asarray(stratum, dtype=np.intp)
    new, old = np.asarray(candidate, dtype=np.float64), np.asarray(champion, dtype=np.float64)
    sizes = (new.size, old.size, labels.size, len(users), group.size)
    if len(set(sizes)) != 1:
        raise ValueError(f"rewards of both, labels, users and strata differ in length: {', '.join(map(str, sizes))}")
    _both(new[labels], new[~labels])
    if np.isnan(new).any() or np.isnan(old).any():
        return Paired(float("nan"), float("nan"), float("nan"), NOT_A_NUMBER)
    codes, times = _resample(users, resamples, seed)
    pairs = _Pairs(labels, codes, group)
    every = pairs.by_users()
    count = every.sum()
    if count == 0:
        return Paired(0.5, 0.5, 0.0, Interval(-1.0, 1.0))
    won = [pairs.by_users(_in_order(v[labels], v[~labels])) for v in (new, old)]
    of_new, of_old = (float(table.sum() / count) for table in won)
    gain = of_new - of_old
    excess = won[0] - won[1] - gain * every
    influence = (excess.sum(axis=0) + excess.sum(axis=1)) / count
    return Paired(of_new, of_old, gain, _percentiles(gain + (times - 1) @ influence, confidence, (-1.0, 1.0)))


class _Pairs:
    """All pairs of an up and a down of one stratum, counted by their two users."""

    def __init__(self, labels: NDArray[np.bool_], codes: NDArray[np.intp], stratum: NDArray[np.intp]) -> None:
        self.alike = (stratum[labels][:, None] == stratum[~labels]).astype(np.float64)  # (ups, downs)
        owns = np.eye(int(codes.max()) + 1)
        self.good, self.bad = owns[codes[labels]], owns[codes[~labels]]  # (rows, users)

    def by_users(self, value: Floats | None = None) -> Floats:
        """The sums over pairs of `value` (ups x downs; None: of 1), by the user of the up (lines) and of the down."""
        table: Floats = self.good.T @ (self.alike if value is None else self.alike * value) @ self.bad
        return table


def _resample(users: Sequence[str], resamples: int, seed: int) -> tuple[NDArray[np.intp], Floats]:
    """Each row's user as a number, and how often every resample drew each user (resamples x users)."""
    names, codes = np.unique(np.asarray(users), return_inverse=True)
    drawn = np.random.default_rng(seed).integers(names.size, size=(resamples, names.size))
    drawn += names.size * np.arange(resamples)[:, None]  # one count for all resamples
    times = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
    return codes, times.astype(np.float64)


def _form(times: Floats, table: Floats) -> Floats:
    """w' table w of every resample's weights w."""
    forms: Floats = np.einsum("ru,ru->r", times @ table, times)
    return forms


def _in_order(good: Floats, bad: Floats) -> Floats:
    """1 where the up has the higher reward, one half for a tie: (ups, downs)."""
    return _above(good[:, None], bad)


def _share(part: Floats, whole: Floats) -> Floats:
    """NaN where there is nothing to take a share of."""
    share: Floats = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return share


def _both(desirable: Sequence[float] | Floats, undesirable: Sequence[float] | Floats) -> tuple[Floats, Floats]:
    good, bad = np.asarray(desirable, dtype=np.float64), np.asarray(undesirable, dtype=np.float64)
    if good.size == 0 or bad.size == 0:
        raise ValueError(f"both classes need a row, got {good.size} desirable and {bad.size} undesirable")
    return good, bad


def _above(values: Floats, threshold: float | Floats) -> Floats:
    side: Floats = (np.sign(values - threshold) + 1) / 2
    return side


def _percentiles(values: Floats, confidence: float, unknown: tuple[float, float]) -> Interval:
    """Of the resamples that say something; `unknown` where none does."""
    known = values[~np.isnan(values)]
    if known.size == 0:
        return Interval(*unknown)
    low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))
