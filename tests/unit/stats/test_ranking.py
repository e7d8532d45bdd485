"""Figures on rewards and texts, against brute force and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kto_ray.evaluate.texts import ends_in_loop, length_ratio, looks_truncated, repeats_itself, repetition
from kto_ray.stats.ranking import auc, balanced_accuracy, bootstrap, paired, strata

rewards = st.lists(st.integers(-4, 4).map(lambda i: i / 2), min_size=1, max_size=30)  # coarse, so that ties abound


@given(rewards, rewards)
def test_auc_is_the_share_of_pairs_in_order(good: list[float], bad: list[float]) -> None:
    pairs = [1.0 if g > b else 0.5 if g == b else 0.0 for g in good for b in bad]
    assert auc(good, bad) == pytest.approx(sum(pairs) / len(pairs))
    assert auc(bad, good) == pytest.approx(1 - auc(good, bad))


def test_a_policy_equal_to_its_reference_scores_one_half() -> None:
    assert auc([0.0] * 7, [0.0] * 30) == 0.5
    assert balanced_accuracy([0.0] * 7, [0.0] * 30, 0.0) == 0.5
    bounds = bootstrap([0.0] * 37, [True] * 7 + [False] * 30, [f"u{i % 9}" for i in range(37)], 0.0, 0.9, 200)
    assert [(b.low, b.high) for b in bounds] == [(0.5, 0.5), (0.5, 0.5)]


def test_balanced_accuracy_by_hand() -> None:
    assert balanced_accuracy([1.0, 1.0, -1.0, 0.5], [-1.0, 2.0], 0.5) == pytest.approx((2.5 / 4 + 1 / 2) / 2)
    assert balanced_accuracy([3.0], [-3.0] * 99, 0.0) == 1.0
    assert balanced_accuracy([3.0] * 99, [3.0], 0.0) == 0.5, "always saying yes is worth nothing"


@pytest.mark.parametrize(("good", "bad"), [([], [1.0]), ([1.0], [])])
def test_one_class_alone_is_refused(good: list[float], bad: list[float]) -> None:
    with pytest.raises(ValueError, match="both classes need a row"):
        auc(good, bad)


def test_nan_is_never_hidden() -> None:
    nan = float("nan")
    assert math.isnan(auc([1.0, nan], [0.0]))
    assert math.isnan(balanced_accuracy([1.0, nan], [0.0], 0.0))
    assert math.isnan(balanced_accuracy([1.0], [0.0], nan))
    for bounds in bootstrap([1.0, nan, 0.0], [True, True, False], ["a", "b", "c"], 0.0, 0.9, 200):
        assert math.isnan(bounds.low)
        assert math.isnan(bounds.high)


def simulate(users: int, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Rewards with a strong effect of the user: rows of one user are nearly copies."""
    random = np.random.default_rng(seed)
    labels = np.repeat(random.random(users) < 0.5, rows)
    values = np.repeat(random.normal(size=users), rows) + 0.05 * random.normal(size=users * rows) + 0.6 * labels
    return values, labels, [f"u{i // rows}" for i in range(users * rows)]


def test_intervals_resample_users_not_rows() -> None:
    """20 users with 20 near-copies each: rows as units would claim a precision that is not there, and cover badly."""
    truth = float(np.mean([auc(v[y], v[~y]) for v, y, _ in (simulate(2000, 1, s) for s in range(5))]))
    by_user = by_row = 0
    for seed in range(60):
        values, labels, users = simulate(20, 20, seed)
        clustered, _ = bootstrap(values, labels, users, 0.0, 0.9, 200, seed)
        naive, _ = bootstrap(values, labels, [str(i) for i in range(len(users))], 0.0, 0.9, 200, seed)
        by_user += clustered.low <= truth <= clustered.high
        by_row += naive.low <= truth <= naive.high
    assert by_user >= 45
    assert by_row <= 35


def brute(values: np.ndarray, labels: np.ndarray, stratum: np.ndarray) -> float:
    won = pairs = 0.0
    for v, s in zip(values[labels], stratum[labels], strict=True):
        downs = values[~labels][stratum[~labels] == s]
        won, pairs = won + float(np.sum(v > downs) + np.sum(v == downs) / 2), pairs + downs.size
    return won / pairs


def test_aucs_within_strata_and_their_difference_are_those_of_all_pairs() -> None:
    random = np.random.default_rng(3)
    labels, stratum = random.random(60) < 0.4, random.integers(0, 4, 60)
    new, old = random.integers(-3, 4, 60) / 2 + labels, random.integers(-3, 4, 60) / 2
    users = [f"u{i % 13}" for i in range(60)]
    found = paired(new, old, labels, users, stratum, 0.8, 400)
    assert found.candidate == pytest.approx(brute(new, labels, stratum))
    assert found.champion == pytest.approx(brute(old, labels, stratum))
    assert found.gain == pytest.approx(found.candidate - found.champion)
    assert found.gain_bounds.low < found.gain < found.gain_bounds.high


def test_the_interval_of_the_difference_is_as_wide_as_differences_are() -> None:
    """In fine strata too, where a bootstrap of the difference itself would be too wide."""

    def gain(seed: int) -> tuple[float, float]:
        random = np.random.default_rng(seed)
        labels, stratum = random.random(120) < 0.5, random.integers(0, 8, 120)
        both = random.normal(size=(2, 120)) + np.repeat(random.normal(size=(2, 30)), 4, axis=1) / 2
        found = paired(both[0], both[1], labels, [f"u{i // 4}" for i in range(120)], stratum, 0.6827, 200)
        return found.gain, (found.gain_bounds.high - found.gain_bounds.low) / 2

    gains, halves = np.array([gain(seed) for seed in range(300)]).T
    assert abs(gains.mean()) < 0.02
    assert 0.9 * gains.std() < halves.mean() < 1.2 * gains.std()


def test_against_itself_nothing_is_gained_and_against_equal_rewards_all_above_one_half() -> None:
    values, labels, users = simulate(150, 2, 4)
    one = np.zeros(300, dtype=int)
    same = paired(values, values, labels, users, one, 0.8, 200)
    assert (same.gain, same.gain_bounds.low, same.gain_bounds.high) == (0.0, 0.0, 0.0)
    base = paired(values, np.zeros(300), labels, users, one, 0.8, 200)
    raw, _ = bootstrap(values, labels, users, 0.0, 0.8, 200)
    assert base.champion == 0.5 and base.gain == pytest.approx(auc(values[labels], values[~labels]) - 0.5)
    assert (base.gain_bounds.low, base.gain_bounds.high) == pytest.approx((raw.low - 0.5, raw.high - 0.5), abs=0.01)


def test_the_difference_is_told_better_by_pairs_than_by_two_intervals() -> None:
    """What both rewards share of a user cancels."""
    values, labels, users = simulate(30, 3, 8)
    better = values + 0.15 * labels
    found = paired(better, values, labels, users, np.zeros(90, dtype=int), 0.8, 400)
    apart = [bootstrap(v, labels, users, 0.0, 0.8, 400)[0] for v in (better, values)]
    assert 0 < found.gain_bounds.low < found.gain < found.gain_bounds.high
    assert apart[0].low < apart[1].high, "two intervals by themselves overlap"


def test_strata_are_of_like_length_and_about_equal_size() -> None:
    found = strata([5, 1, 2, 9, 7, 3, 8, 4], 4)
    assert found.tolist() == [2, 0, 0, 3, 2, 1, 3, 1]
    assert set(strata([7] * 9 + [8], 4).tolist()) == {0, 1}, "equal lengths share a stratum"
    assert set(strata([3, 4, 5], 1).tolist()) == {0}


def test_what_only_knows_length_gains_nothing_within_strata() -> None:
    random = np.random.default_rng(5)
    labels = random.random(4000) < 0.5
    lengths = np.exp(4 + 0.6 * (random.normal(size=4000) + 0.3 * labels)).astype(int)
    users = [f"u{i % 100}" for i in range(4000)]
    drift, nothing = -lengths.astype(float), np.zeros(4000)
    whole = paired(drift, nothing, labels, users, np.zeros(4000, dtype=int), 0.8, 200)
    within = paired(drift, nothing, labels, users, strata(lengths, 8), 0.8, 200)
    assert whole.gain < -0.06
    assert abs(within.gain) < 0.02


def test_strata_without_a_pair_say_nothing() -> None:
    found = paired([1.0, 2.0], [0.0, 0.0], [True, False], ["a", "b"], [0, 1], 0.8, 200)
    assert found.gain == 0.0 and (found.gain_bounds.low, found.gain_bounds.high) == (-1.0, 1.0)
    assert math.isnan(paired([1.0, float("nan")], [0.0, 0.0], [True, False], ["a", "b"], [0, 0], 0.8, 200).gain)
    with pytest.raises(ValueError, match="differ in length: 2, 2, 2, 2, 1"):
        paired([1.0, 2.0], [0.0, 0.0], [True, False], ["a", "b"], [0], 0.8, 200)
    with pytest.raises(ValueError, match="both classes need a row"):
        paired([1.0, 2.0], [0.0, 0.0], [True, True], ["a", "b"], [0, 0], 0.8, 200)


def test_bootstrap_is_reproducible_and_refuses_ragged_input() -> None:
    values, labels, users = simulate(10, 3, 1)
    assert bootstrap(values, labels, users, 0.0, 0.9, 200, 5) == bootstrap(values, labels, users, 0.0, 0.9, 200, 5)
    with pytest.raises(ValueError, match="differ in length: 30, 30, 29"):
        bootstrap(values, labels, users[:-1], 0.0, 0.9, 200)


def test_repetition_counts_repeated_trigrams() -> None:
    assert repetition("") == repetition("two words") == 0.0
    assert repetition("the cat sat on the mat and then it slept") == 0.0
    assert repetition("a b c a b c") == pytest.approx(1 / 4)
    assert repetition("no " * 50) > 0.95


@pytest.mark.parametrize(
    "text",
    [
        "It is nice. It is nice. It is nice. It is nice.",
        "Sure: the sea, the sea, the sea, the sea, the s",
        "Well!!!!!!!!!!!!!!!!!!",
        "海很美。海很美。海很美。海很美。海很美。海很美。",
        "a\nb and so on\nb and so on\nb and so on\n",
    ],
)
def test_loops_are_seen(text: str) -> None:
    assert ends_in_loop(text)
    assert repeats_itself(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Paris.",
        "Wow!!!",
        "The capital of France is Paris.",
        "1. Go to bed early.\n2. Avoid coffee.\n3. Keep the room dark.",
        "Hmm... let me think... yes, seven plus five is twelve.",
        "A dog barks and a cat meows; a dog is loyal and a cat is independent.",
    ],
)
def test_plain_answers_do_not_repeat_themselves(text: str) -> None:
    assert not repeats_itself(text)


@pytest.mark.parametrize(
    ("finish_reason", "text", "truncated"),
    [
        ("length", "And then we", True),
        ("length", "And then we stop.", True),
        ("stop", "Paris", False),
        (None, "And then we", True),
        (None, "We stop.", False),
        (None, "He said “stop.”", False),
        (None, "", True),
    ],
)
def test_truncation_believes_the_engine_first(finish_reason: str | None, text: str, truncated: bool) -> None:
    assert looks_truncated(finish_reason, text) is truncated


def test_length_ratio() -> None:
    assert length_ratio([10, 20], [30, 30]) == 0.5
    assert length_ratio([4], [0]) == 4.0
    assert math.isnan(length_ratio([], [1]))
