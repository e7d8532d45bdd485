"""What logged outcomes say of a policy that did not answer, by importance weights, if these leave enough of them. Pure.

An answer that was served and judged counts by w = p_new(answer | prompt) / p_served(answer | prompt), so that what the
new policy would say more often counts more. The weights are normalised by their own sum (Owen, Monte Carlo theory,
methods and examples, section 9.2): the mean of the outcomes is sum(w y) / sum(w). Log-weights add up over an answer's
tokens: where policies differ by a few nats an answer, a few answers have all the weight, however many there are. Kong's
effective sample says so, (sum w)^2 / sum w^2 (Kong 1992; Owen, section 9.3), and up to `LEAST` nothing is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from kto_ray.stats.ranking import Interval

Floats = NDArray[np.float64]

LEAST = 100.0  # an effective sample must exceed it


def effective_sample(log_weights: Sequence[float] | Floats) -> float:
    """How many answers of equal weight would say as much; 0 where there is none, NaN where a weight is NaN."""
    weights = _weights(log_weights)
    return float(weights.sum() ** 2 / (weights**2).sum()) if weights.size else 0.0


@dataclass(frozen=True, slots=True)
class Gain:
    """By how much more the new policy's answers would be liked than the served ones were."""

    value: float
    bounds: Interval


def gain(
    log_weights: Sequence[float] | Floats,
    outcomes: Sequence[float] | Floats,
    users: Sequence[str],
    confidence: float,
) -> Gain | None:
    """The weighted mean of the outcomes less their plain mean; None where the effective sample does not exceed `LEAST`.

    The interval is the delta method's, by users, whose answers share a taste: a user's influence is the sum over their
    answers of w (y - weighted mean) / sum(w) - (y - mean) / n, and Student's t of one less than the users widens it
    where these are few. (-1, 1) of one user.

    Args:
        log_weights: log p_new - log p_served of every answer, in nats.
        outcomes: from 0 to 1, of the same answers.
        users: whose they are.

    Raises:
        ValueError: lengths differ.
    """
    weights, liked = _weights(log_weights), np.asarray(outcomes, dtype=np.float64)
    if not weights.size == liked.size == len(users):
        raise ValueError(f"weights, outcomes and users differ in length: {weights.size}, {liked.size}, {len(users)}")
    if not effective_sample(log_weights) > LEAST:
        return None
    share = weights / weights.sum()
    new, old = float(share @ liked), float(liked.mean())
    names, codes = np.unique(np.asarray(users), return_inverse=True)
    influence = np.bincount(codes, share * (liked - new) - (liked - old) / liked.size)
    if names.size < 2:
        return Gain(new - old, Interval(-1.0, 1.0))
    deviation = float(np.sqrt(names.size / (names.size - 1) * (influence**2).sum()))
    reach = float(t.ppf((1 + confidence) / 2, names.size - 1)) * deviation
    return Gain(new - old, Interval(max(new - old - reach, -1.0), min(new - old + reach, 1.0)))


def _weights(logs: Sequence[float] | Floats) -> Floats:
    """The weights but for a factor, which cancels; the greatest is 1, so that none overflows."""
    found = np.asarray(logs, dtype=np.float64)
    scaled: Floats = np.exp(found - found.max()) if found.size else found
    return scaled
