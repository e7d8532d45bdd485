"""The voters that are named do promote in about four of five tests, and the gain that is named is theirs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kto_ray.bench.decisions_trials import over, voters
from kto_ray.stats.power import detectable, voters_needed
from kto_ray.stats.score import log_evidence


@settings(deadline=None)  # the machine may be busy
@given(st.floats(0.05, 0.9), st.floats(0.01, 0.09), st.floats(0.001, 0.1), st.floats(0.05, 0.95))
def test_each_is_the_other_s_inverse(rate: float, gain: float, level: float, weight: float) -> None:
    assert detectable(voters_needed(gain, rate, level, weight), rate, level, weight) == pytest.approx(gain, rel=1e-4)


def test_known_values_and_their_order() -> None:
    assert detectable(5000, 0.6, 0.05) == pytest.approx(math.sqrt(11.7 / 5000), rel=0.03)
    assert voters_needed(0.05, 0.5, 0.005) > 1.4 * voters_needed(0.05, 0.5, 0.05)
    assert voters_needed(0.05, 0.5, 0.05, weight=0.1) > 2.5 * voters_needed(0.05, 0.5, 0.05)
    assert detectable(0, 0.6, 0.05) == math.inf == detectable(5, 0.9, 0.05)


@pytest.mark.parametrize(
    ("rate", "gain", "level", "weight"),
    [(0.5, 0.1, 0.05, 0.5), (0.6, 0.1, 0.005, 0.5), (0.3, 0.2, 0.05, 0.5), (0.6, 0.1, 0.05, 0.2)],
)
def test_so_many_voters_promote_in_four_of_five_tests(rate: float, gain: float, level: float, weight: float) -> None:
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
