"""The gate's figures on rewards: against the champion, among answers of like length, and where length is the taste."""

from __future__ import annotations

import numpy as np
import pytest

from kto_ray.config.deciding import GateSection
from kto_ray.evaluate.ranks import ranking

SECTION = GateSection(bootstrap=400)


def held_out(
    users: int, rows: int, by_length: float, seed: int
) -> tuple[np.ndarray, list[str], np.ndarray, np.ndarray]:
    """Labels, users, lengths in tokens that differ by `by_length` standard deviations, and one draw of noise a row."""
    random = np.random.default_rng(seed)
    labels = random.random(users * rows) < 0.5
    lengths = np.floor(np.exp(4 + 0.5 * (random.normal(size=labels.size) + by_length * labels)))
    return labels, [f"u{i // rows}" for i in range(labels.size)], lengths, random.normal(size=labels.size)


def test_against_the_base_model_the_gain_is_over_one_half() -> None:
    labels, users, lengths, noise = held_out(60, 3, 0.0, 1)
    found = ranking(SECTION, noise + labels, np.zeros(labels.size), labels, users, lengths)
    assert found["auc_champion"] == found["auc_alike_champion"] == 0.5
    assert found["auc_gain"] == pytest.approx(found["auc_alike"] - 0.5)
    assert 0.1 < found["auc_gain_low"] < found["auc_gain"] < found["auc_gain_high"]
    assert found["length_strata"] == 5.0


def test_against_a_champion_the_gain_is_over_it() -> None:
    labels, users, lengths, noise = held_out(60, 3, 0.0, 2)
    other = np.random.default_rng(9).normal(size=labels.size)
    worse, better = noise + 0.7 * labels, 0.8 * noise + 0.2 * other + 1.5 * labels
    found = ranking(SECTION, better, worse, labels, users, lengths)
    assert found["auc_champion"] < found["auc"] and found["auc_gain_low"] > 0
    back = ranking(SECTION, worse, better, labels, users, lengths)
    assert back["auc_gain"] == pytest.approx(-found["auc_gain"]) and back["auc_gain_high"] < 0
    assert ranking(SECTION, worse, worse, labels, users, lengths)["auc_gain_high"] == 0.0, "a clone gains nothing"


def test_a_drift_along_length_gains_nothing_where_ups_are_a_little_longer() -> None:
    labels, users, lengths, _ = held_out(400, 3, 0.25, 3)
    found = ranking(SECTION, lengths, np.zeros(labels.size), labels, users, lengths)
    assert found["auc_low"] > 0.5, "it tells them apart by length alone"
    assert abs(found["auc_gain"]) < 0.02 and found["length_strata"] == 5.0


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_where_length_is_the_taste_it_may_be_learnt(sign: float) -> None:
    """Those who like short answers are served by a candidate that gives them."""
    labels, users, lengths, _ = held_out(60, 3, 3.0 * sign, 4)
    found = ranking(SECTION, sign * lengths, np.zeros(labels.size), labels, users, lengths)
    assert found["length_strata"] == 1.0
    assert found["auc_gain"] == pytest.approx(found["auc"] - 0.5) and found["auc_gain_low"] > 0.4
    assert (found["auc_length"] > 0.5) is (sign > 0)
