"""Counts of two arms: unequal shares are found, equal ones seldom; more ups are found, silence is none."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import betaln

from kto_ray.bench.decisions_trials import over, rules, voters
from kto_ray.stats.ratio import RATIOS, log_evidence, more_ups

counts = st.integers(0, 2000)
weights = st.floats(0.05, 0.95)


@settings(deadline=None)  # the machine may be busy
@given(counts, counts, weights)
def test_shares_are_told_by_a_mixture_whatever_the_order(champion: int, challenger: int, weight: float) -> None:
    by_hand = betaln(1 + challenger, 1 + champion) - challenger * math.log(weight) - champion * math.log1p(-weight)
    assert log_evidence(champion, challenger, weight) == pytest.approx(by_hand, abs=1e-6)
    assert log_evidence(challenger, champion, 1 - weight) == pytest.approx(by_hand, abs=1e-6)


@settings(deadline=None)  # the machine may be busy
@given(st.floats(0, 1), weights)
def test_no_share_up_to_the_weight_makes_more_ups_grow(of_weight: float, weight: float) -> None:
    """One up's mean factor, exactly: at most 1 for every share up to the weight, 1 at it, above 1 beyond."""

    def mean(share: float) -> float:
        return share * math.exp(more_ups(0, 1, weight)) + (1 - share) * math.exp(more_ups(1, 0, weight))

    assert mean(of_weight * weight) <= 1 + 1e-12
    assert mean(weight) == pytest.approx(1)
    assert mean(weight + 0.5 * (1 - weight)) > 1


@settings(deadline=None)  # the machine may be busy
@given(counts, counts, weights)
def test_more_ups_is_a_mean_of_likelihood_ratios(champion: int, challenger: int, weight: float) -> None:
    shares = [weight * ratio / (1 - weight + weight * ratio) for ratio in RATIOS]
    logs = [challenger * math.log(q / weight) + champion * math.log((1 - q) / (1 - weight)) for q in shares]
    assert more_ups(champion, challenger, weight) == pytest.approx(np.logaddexp.reduce(logs) - math.log(len(logs)))
    assert more_ups(champion, challenger + 1, weight) > more_ups(champion, challenger, weight)


@pytest.mark.parametrize("weight", [0.5, 0.1])
def test_equal_ups_are_seldom_taken_for_more_and_shares_seldom_for_unequal(weight: float) -> None:
    """1,500 tests, a look after each of 2,000 trials: at most 5% and three standard errors, and not never."""
    arm = np.random.default_rng(0).random((1500, 2000)) < weight
    after = np.arange(1, 2001)
    ones = np.cumsum(arm, axis=1)
    assert 0.01 < (more_ups(after - ones, ones, weight).max(axis=1) >= math.log(20)).mean() < 0.067
    assert 0.003 < (log_evidence(after - ones, ones, weight).max(axis=1) >= math.log(20)).mean() < 0.067


def test_a_third_more_ups_and_a_share_of_six_tenths_are_found() -> None:
    ones = np.cumsum(np.random.default_rng(0).random((300, 1000)) < 0.6, axis=1)
    after = np.arange(1, 1001)
    assert (more_ups(after - ones, ones, 0.5).max(axis=1) >= math.log(20)).mean() > 0.98
    assert (log_evidence(after - ones, ones, 0.5).max(axis=1) >= math.log(100)).mean() > 0.98


def test_quiet_unhappy_users_promote_nothing_that_pleases_nobody() -> None:
    """A third of the challenger's unhappy users keep still: the score alone is fooled, all conditions together are not;
    a true gain of 10 points passes them all."""
    alone, together = over(voters(5000, (0.6, 0.6), quieter=0.3), 5000, 300, 1, rules).mean(axis=0)
    assert alone > 0.9 and together <= 0.05 + 0.04
    assert over(voters(8000, (0.5, 0.6)), 8000, 100, 1, rules).mean(axis=0)[1] > 0.9


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        log_evidence(-1, 2, 0.5)
    with pytest.raises(ValueError, match=r"between 0 and 1, got 1\.0"):
        more_ups(1, 2, 1.0)
