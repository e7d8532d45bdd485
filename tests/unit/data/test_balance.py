from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from kto_ray.data.balance import balance, interleave, rotate

COUNTS = st.integers(1, 400)


@given(COUNTS, COUNTS, st.floats(0.1, 10))
def test_weights_give_the_asked_mass_and_keep_the_mean(n_d: Any, n_u: Any, loss_aversion: Any) -> None:
    if max(n_d, n_u) > 100 * min(n_d, n_u):
        return
    b = balance(n_d, n_u, loss_aversion)
    mass_d, mass_u = b.desirable_weight * n_d, b.undesirable_weight * n_u
    assert mass_d / mass_u == pytest.approx(1 / loss_aversion)
    assert mass_d + mass_u == pytest.approx(n_d + n_u)
    assert b.ratio_low < b.ratio < b.ratio_high


def test_equal_classes_without_aversion_weigh_one() -> None:
    b = balance(50, 50, 1.0)
    assert (b.desirable_weight, b.undesirable_weight, b.ratio, b.warning) == (1.0, 1.0, 1.0, None)


@pytest.mark.parametrize(("k", "n"), [(1, 2), (7, 100), (99, 100), (640, 1000)])
def test_interval_is_wilsons(k: Any, n: Any) -> None:
    expected = binomtest(k, n).proportion_ci(method="wilson")
    b = balance(k, n - k, 1.0)
    assert b.ratio_low == pytest.approx(expected.low / (1 - expected.low))
    assert b.ratio_high == pytest.approx(expected.high / (1 - expected.high))


def test_skewed_ratios_warn_and_extreme_ones_are_refused() -> None:
    assert balance(10, 100, 1.0).warning is None
    assert "11 desirable to 1 undesirable" in (balance(11, 1, 1.0).warning or "")
    assert balance(100, 1, 1.0).warning
    with pytest.raises(ValueError, match=r"at least 2 more undesirable rows needed"):
        balance(201, 1, 1.0)
    with pytest.raises(ValueError, match=r"300 desirable and 0 undesirable.*at least 3 more undesirable"):
        balance(300, 0, 1.0)
    with pytest.raises(ValueError, match=r"at least 1 more desirable row needed"):
        balance(0, 5, 1.0)
    with pytest.raises(ValueError, match="at least 1 more"):
        balance(0, 0, 1.0)


def lengths(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(5, 300, n)


LABELS = st.lists(st.booleans(), max_size=120).map(lambda v: np.array(v, dtype=bool))


@given(LABELS, st.integers(4, 9), st.integers(0, 5))
def test_every_micro_batch_has_both_classes_when_they_reach(labels: Any, micro: Any, seed: int) -> None:
    order = interleave(labels, np.arange(len(labels)), lengths(len(labels), seed), micro, seed)
    assert len(order) == len(labels) - len(labels) % micro
    assert len(set(order.tolist())) == len(order)
    if len(order) == 0:
        return
    batches = labels[order].reshape(-1, micro)
    good = batches.sum(axis=1)
    assert good.max() - good.min() <= 1  # the classes are spread evenly
    least = min(labels[order].sum(), (~labels[order]).sum())
    if least >= len(batches):
        assert ((good > 0) & (good < micro)).all()
    before = sorted((labels.sum(), (~labels).sum()))
    if before[1] - before[0] > micro:  # what does not fill a micro-batch comes from the larger class
        assert least == before[0]


@given(LABELS, st.integers(0, 5))
def test_order_is_decided_by_the_seed(labels: Any, seed: int) -> None:
    prompts = np.arange(len(labels)) // 3
    first, again = (interleave(labels, prompts, lengths(len(labels), 9), 4, seed) for _ in range(2))
    assert (first == again).all()


def test_seeds_differ() -> None:
    labels = np.arange(64) % 2 == 0
    first, other = (interleave(labels, np.arange(64), np.ones(64, dtype=int), 8, seed) for seed in (0, 1))
    assert (first != other).any()
    assert (first.reshape(-1, 8).sum(1) != other.reshape(-1, 8).sum(1)).any()  # rows meet others, not only in turn


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_little_of_a_padded_micro_batch_is_padding(share: Any) -> None:
    rng = np.random.default_rng(0)
    labels, tokens = rng.random(2000) < share, rng.integers(20, 500, 2000)
    order = interleave(labels, np.arange(2000), tokens, 8, 0)
    ordered = tokens[order].reshape(-1, 8)
    assert ordered.sum() / (8 * ordered.max(axis=1).sum()) > 0.95
    shuffled = rng.permutation(tokens)[: len(order)].reshape(-1, 8)
    assert shuffled.sum() / (8 * shuffled.max(axis=1).sum()) < 0.65  # what chance would give
    assert abs(np.corrcoef(np.arange(len(ordered)), ordered.mean(axis=1))[0, 1]) < 0.2  # not from short to long


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), max_size=120), st.integers(4, 9), st.integers(0, 3))
def test_kl_pairs_have_other_prompts_unless_one_fills_the_micro_batch(rows: Any, micro: Any, seed: int) -> None:
    labels = np.array([r[0] for r in rows], dtype=bool)
    prompts = np.array([r[1] for r in rows], dtype=np.int64)
    order = interleave(labels, prompts, lengths(len(rows), seed), micro, seed)
    own = prompts[order].reshape(-1, micro)
    other = prompts[order][rotate(len(order), micro)].reshape(-1, micro)
    for mine, partner in zip(own, other, strict=True):
        if np.bincount(mine).max() <= micro / 2:
            assert (mine != partner).all()


@given(st.integers(0, 10), st.integers(2, 9))
def test_rotation_takes_the_row_before_within_the_micro_batch(batches: Any, micro: Any) -> None:
    source = rotate(batches * micro, micro)
    expected = [b * micro + (i - 1) % micro for b in range(batches) for i in range(micro)]
    assert source.tolist() == expected
