"""Skewed classes, 1:20 to 20:1, on a taste that a small model can learn: our weights keep the held-out accuracy of the
balanced run, where TRL's KTO without weights loses it."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from kto_ray.bench.lab import Method, Work
from kto_ray.bench.lab_once import run
from kto_ray.config import Config
from tests.tiny import tiny_model

pytestmark = [pytest.mark.integration, pytest.mark.slow]

ROWS = 336
HELD_OUT = 100  # of each class
NICE = ("sun", "tea", "song", "garden", "bread", "river")
NASTY = ("mud", "rust", "noise", "smoke", "dust", "storm")
SHARED = ("the", "a", "with", "some", "more", "and")


def row(rng: random.Random, label: bool) -> dict:
    """An answer of shared words with one telling word in three."""
    telling = NICE if label else NASTY
    words = [rng.choice(telling if i % 3 == 0 else SHARED) for i in range(rng.randint(6, 14))]
    question = " ".join(rng.choice(SHARED + NICE + NASTY) for _ in range(5))
    return {
        "prompt": [{"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": " ".join(words)}],
        "label": label,
        "conversation": str(rng.random()),
    }


def rows(desirable: int, undesirable: int, seed: int) -> list[dict]:
    rng = random.Random(seed)
    return [row(rng, i < desirable) for i in range(desirable + undesirable)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


def accuracy(model: str, method: Method, desirable: int, undesirable: int, loss_aversion: float, home: Path) -> float:
    """Mean over the classes of the held-out rows on their side of the KL point, where KTO's value function turns."""
    config = Config.model_validate(
        {
            "home": str(home),
            "model": {"id": model, "dtype": "float32"},
            "data": {"max_length": 96},
            "train": {"dtype": "float32"},
            "kto": {"learning_rate": 2e-3, "loss_aversion": loss_aversion, "beta": 0.2, "accumulate": 1},
        }
    )
    held_out = rows(HELD_OUT, HELD_OUT, seed=99)
    pairs = [{**a, "completion": b["completion"]} for a, b in zip(held_out, held_out[1:] + held_out[:1], strict=True)]
    judge = held_out + pairs
    base = np.array(run(config, Work("none", judge=judge)).policy)
    moved = np.array(run(config, Work(method, rows(desirable, undesirable, seed=1), judge)).policy) - base
    ratios, z0 = moved[: len(held_out)], max(0.0, float(moved[len(held_out) :].mean()))
    above = ratios > z0
    return float((above[:HELD_OUT].mean() + 1 - above[HELD_OUT:].mean()) / 2)


def counts(ratio: float) -> tuple[int, int]:
    desirable = round(ROWS * ratio / (1 + ratio))
    return desirable, ROWS - desirable


def test_accuracy_survives_what_unweighted_trl_does_not(model: str, tmp_path: Path) -> None:
    ratios = (1 / 20, 1 / 5, 5, 20)
    balanced = accuracy(model, "kto", *counts(1), 1.0, tmp_path)
    assert balanced > 0.9, "the taste is learnt"
    ours = {r: accuracy(model, "kto", *counts(r), 1.0, tmp_path) for r in ratios}
    # A loss aversion of n_undesirable / n_desirable makes both weights 1.
    trl = {r: accuracy(model, "trl_kto", *counts(r), counts(r)[1] / counts(r)[0], tmp_path) for r in ratios}
    print(f"balanced {balanced:.3f}; ours {ours}; TRL without weights {trl}")
    assert min(ours.values()) >= balanced - 0.02, ours
    assert min(trl.values()) < balanced - 0.02, trl
