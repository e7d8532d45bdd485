"""Exact tests of yes-or-no outcomes: is the new one worse, is it surely not much worse, what may a share be? Pure.

Of n items, `lost` are those that only the old one met, `won` those that only the new one met; all others say nothing of
a difference. Both tests hold their level at any n: no normal approximation is trusted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln
from scipy.stats import beta, binom

Floats = NDArray[np.float64]

NUISANCES = 100  # shares of items won that are tried; the p-value is smooth in it


def worse(lost: int, won: int) -> float:
    """The p-value of "not worse": the chance of so many lost or more among those that differ, were both as likely.

    McNemar's test, exact and one-sided.
    """
    return float(binom.sf(lost - 1, lost + won, 0.5)) if lost + won else 1.0


def much_worse(lost: int, won: int, items: int, margin: float) -> float:
    """The p-value of "worse by `margin` of the items or more"; where it is small, the new one is not inferior.

    The score test of Tango (Statistics in Medicine 17, 1998), made exact: the chance of a table that speaks at least as
    much against it, at the share of wins (the nuisance) that makes this chance greatest (Hsueh, Liu and Chen,
    Biometrics 57, 2001).

    Raises:
        ValueError: the counts are none of such items, or the margin is not between 0 and 1.
    """
    if min(lost, won) < 0 or lost + won > items or items < 1 or not 0 < margin < 1:
        raise ValueError(f"no pairs: {lost} lost and {won} won of {items} items, margin {margin:g}")
    table = margin_levels(items, margin)
    return float(table.level[(table.lost == lost) & (table.won == won)][0])


def share_interval(part: float, whole: int, confidence: float) -> tuple[float, float]:
    """Clopper and Pearson's interval of a share. Of outcomes between no and yes, `part` is their sum: these spread less
    than plain ones of the same mean, so that it is then wider than it need be."""
    tail = (1 - confidence) / 2
    low = beta.ppf(tail, part, whole - part + 1) if part > 0 else 0.0
    high = beta.ppf(1 - tail, part + 1, whole - part) if part < whole else 1.0
    return float(low), float(high)


@dataclass(frozen=True, slots=True)
class Levels:
    """Every table of a number of items, and its p-value."""

    lost: Floats
    won: Floats
    level: Floats


@lru_cache(maxsize=4)
def margin_levels(items: int, margin: float) -> Levels:
    """`much_worse` of every table of `items`."""
    losses, wins = (counts.astype(np.float64) for counts in np.divmod(np.arange((items + 1) ** 2), items + 1))
    real = losses + wins <= items
    scores = _score(losses[real], wins[real], items, margin)
    order = np.argsort(-scores, kind="stable")  # what speaks most against "worse by the margin" first
    lost, won, scores = losses[real][order], wins[real][order], scores[order]
    rest = items - lost - won
    ways = gammaln(items + 1) - gammaln(lost + 1) - gammaln(won + 1) - gammaln(rest + 1)
    last = np.searchsorted(-scores, -scores + 1e-9, side="right") - 1  # of those with the same score
    level = np.zeros(lost.size)
    for share in np.linspace(1e-12, (1 - margin) / 2 - 1e-12, NUISANCES):
        logs = lost * np.log(share + margin) + won * np.log(share) + rest * np.log(1 - margin - 2 * share)
        level = np.maximum(level, np.cumsum(np.exp(ways + logs))[last])
    return Levels(lost, won, np.minimum(level, 1.0))


def _score(lost: Floats, won: Floats, items: int, margin: float) -> Floats:
    """Tango's score: the distance to `margin` in standard errors at the likeliest share of wins under it."""
    b = -lost - won + (2 * items - lost + won) * margin
    c = -won * margin * (1 - margin)
    share = (np.sqrt(np.maximum(b * b - 8 * items * c, 0)) - b) / (4 * items)
    variance = items * (2 * share + margin * (1 - margin))
    score: Floats = (items * margin - (lost - won)) / np.sqrt(np.maximum(variance, 1e-300))
    return score
