"""Importance weights: by hand, at the truth, and silent where few answers have all the weight."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import t

from kto_ray.stats.offpolicy import LEAST, effective_sample, gain


def test_the_effective_sample_by_hand() -> None:
    assert effective_sample([]) == 0.0
    assert effective_sample([0.3, 0.3, 0.3]) == pytest.approx(3.0)
    assert effective_sample(np.log([1.0, 1.0, 2.0])) == pytest.approx(16 / 6)
    assert effective_sample([0.0, 900.0, -900.0]) == pytest.approx(1.0), "no weight overflows"
    assert math.isnan(effective_sample([0.0, float("nan")]))


def test_a_gain_by_hand() -> None:
    """Weights 1 and 3 in turn, liked where they are 3, and two users: one of each weight."""
    logs, liked = np.log([1.0, 3.0] * 100), [0.0, 1.0] * 100
    found = gain(logs, liked, ["a", "b"] * 100, 0.75)
    assert effective_sample(logs) == pytest.approx(400**2 / 1000)
    assert found is not None and found.value == pytest.approx(0.75 - 0.5)
    # Of a: 100 (1/400 (0 - .75) - (0 - .5)/200) = 1/16; of b: 100 (3/400 (1 - .75) - (1 - .5)/200) = -1/16.
    reach = t.ppf(0.875, 1) * math.sqrt(2 / 1 * 2 / 16**2)
    assert (found.bounds.low, found.bounds.high) == pytest.approx((0.25 - reach, 0.25 + reach))


def test_equal_policies_gain_nothing_for_sure() -> None:
    found = gain([0.0] * 150, [1.0, 0.0] * 75, [str(i // 3) for i in range(150)], 0.75)
    assert found is not None
    assert (found.value, found.bounds.low, found.bounds.high) == pytest.approx((0.0, 0.0, 0.0))


def test_nothing_is_said_of_too_small_an_effective_sample() -> None:
    assert gain([0.0] * int(LEAST), [1.0] * int(LEAST), ["a"] * int(LEAST), 0.75) is None
    assert gain([0.0] * 101, [1.0] * 101, [str(i) for i in range(101)], 0.75) is not None
    random = np.random.default_rng(0)
    far = gain(random.normal(0, 4, 1000), random.random(1000), [str(i) for i in range(1000)], 0.75)
    assert far is None, "some nats an answer leave a few answers with all the weight"
    assert gain([float("nan")] * 300, [1.0] * 300, ["a"] * 300, 0.75) is None


def test_one_user_says_nothing_of_others() -> None:
    found = gain([0.0, 0.1] * 100, [1.0, 0.0] * 100, ["a"] * 200, 0.75)
    assert found is not None and (found.bounds.low, found.bounds.high) == (-1.0, 1.0)


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="200, 1, 1"):
        gain([0.0] * 200, [1.0], ["a"], 0.75)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Two kinds of answers, liked in 80% and 30%; served 1:1, and 3:2 by the new policy, in 400 samples of 200 users
    whose likings lie apart."""
    random = np.random.default_rng(1)
    truth = 0.6 * 0.8 + 0.4 * 0.3 - 0.5 * (0.8 + 0.3)
    hits = []
    for _ in range(400):
        users = np.repeat(np.arange(200), 3)
        first = random.random(600) < 0.5
        liking = np.clip(np.where(first, 0.8, 0.3) + random.uniform(-0.2, 0.2, 200)[users], 0, 1)
        logs = np.log(np.where(first, 0.6, 0.4) / 0.5)
        found = gain(logs, (random.random(600) < liking).astype(float), [str(u) for u in users], 0.75)
        assert found is not None
        hits.append(found.bounds.low <= truth <= found.bounds.high)
    assert abs(np.mean(hits) - 0.75) < 3 * math.sqrt(0.75 * 0.25 / 400)
