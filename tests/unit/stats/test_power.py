"""The voters that are named do promote in about four of five tests, and the gain that is named is theirs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kto_ray.bench.decisions_trials import over, rules, voters
from kto_ray.rollout.machine import UPS_ALPHA
from kto_ray.stats.power import detectable, promoted, voters_needed
from kto_ray.stats.score import log_evidence

ASLEEP = 1 - 1e-9  # a level at which more ups are hardly a condition


@settings(deadline=None, max_examples=25)  # the machine may be busy
@given(st.floats(0.05, 0.9), st.floats(0.01, 0.09), st.floats(0.001, 0.1), st.floats(0.05, 0.95))
def test_the_gain_that_is_named_has_the_power_that_is_named(
    rate: float, gain: float, level: float, weight: float
) -> None:
    n = voters_needed(gain, rate, level, weight)
    assert promoted(n, gain, rate, level, ASLEEP, weight) <= 0.8 + 1e-6
    found = detectable(n, rate, level, UPS_ALPHA, weight)
    assert found == math.inf or promoted(n, found, rate, level, UPS_ALPHA, weight) == pytest.approx(0.8, abs=1e-4)
    assert found >= gain * (1 - 1e-4), "two conditions find no smaller gain than one"


def test_known_values_and_their_order() -> None:
    assert detectable(5000, 0.6, 0.05, ASLEEP) == pytest.approx(math.sqrt(11.7 / 5000), rel=0.15)
    assert voters_needed(0.05, 0.5, 0.005) > 1.4 * voters_needed(0.05, 0.5, 0.05)
    assert voters_needed(0.05, 0.5, 0.05, weight=0.1) > 2.5 * voters_needed(0.05, 0.5, 0.05)
    assert detectable(0, 0.6, 0.05, UPS_ALPHA) == math.inf == detectable(5, 0.9, 0.05, UPS_ALPHA)
    assert detectable(6500, 0.6, 0.005, UPS_ALPHA, effect=0.03) > 0.03 + voters_fit(6500)
    assert 0 < detectable(6500, 0.0, 0.005, UPS_ALPHA) < 0.05, "a champion whom nobody likes"


def voters_fit(voters: int) -> float:
    """The gain at which the score alone needs so many, at 60% and a level of 0.5%."""
    return next(gain / 1000 for gain in range(1, 400) if voters_needed(gain / 1000, 0.6, 0.005) <= voters) - 0.001


@pytest.mark.parametrize(
    ("n", "rate", "level", "weight"),
    [(6500, 0.6, 0.005, 0.5), (2000, 0.6, 0.05, 0.5), (6500, 0.85, 0.005, 0.5), (2000, 0.1, 0.005, 0.5),
     (13_000, 0.6, 0.005, 0.2)],
)  # fmt: skip
def test_the_gain_that_is_named_is_promoted_in_four_of_five_tests(
    n: int, rate: float, level: float, weight: float
) -> None:
    """By all that the machine demands of judgements: the score alone finds smaller gains, which are not promoted."""
    gain = detectable(n, rate, level, UPS_ALPHA, weight)
    draw = voters(n, (rate, rate + gain), weight)
    both = over(draw, n, 300, 1, lambda trials: rules(trials, weight, level)[:, 1])
    assert 0.75 < np.mean(both) < 0.9


@pytest.mark.parametrize(
    ("rate", "gain", "level", "weight"),
    [(0.5, 0.1, 0.05, 0.5), (0.6, 0.1, 0.005, 0.5), (0.3, 0.2, 0.05, 0.5), (0.6, 0.1, 0.05, 0.2)],
)
def test_so_many_voters_are_enough_for_the_score_alone_in_four_of_five_tests(
    rate: float, gain: float, level: float, weight: float
) -> None:
    n = math.ceil(voters_needed(gain, rate, level, weight))
    found = over(
        voters(n, (rate, rate + gain), weight), n, 1000, 1,
        lambda t: log_evidence(t.challenger, t.outcome, weight).max(axis=1) >= -math.log(level),
    )  # fmt: skip
    assert 0.75 < np.mean(found) < 0.9


@pytest.mark.parametrize(("gain", "rate", "level"), [(0.0, 0.5, 0.05), (0.6, 0.5, 0.05), (0.1, 0.5, 0.0)])
def test_impossible_input_is_refused(gain: float, rate: float, level: float) -> None:
    with pytest.raises(ValueError, match=r"gain|level"):
        voters_needed(gain, rate, level)
