"""Skewed classes, 1:20 to 20:1, on a taste that a small model can learn: our weights keep the held-out accuracy of the
balanced run, where TRL's KTO without weights loses it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kto_ray.bench.experiment import Method, Work
from kto_ray.bench.inside.experiment import run
from kto_ray.config import Config
from kto_ray.stats.ranking import auc
from tests.support.tiny import tiny_model

pytestmark = [pytest.mark.integration, pytest.mark.slow]

ROWS = 840
DRAWS = (1, 2, 3, 4)  # of the rows: of a rare class there are 40, and which ones moves the accuracy by a hundredth
HELD_OUT = 100  # of each class
NICE = ("sun", "tea", "song", "garden", "bread", "river")
NASTY = ("mud", "rust", "noise", "smoke", "dust", "storm")
SHARED = ("the", "a", "with", "some", "more", "and")


def row(rng: random.Random, label: bool) -> dict[str, Any]:
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


def rows(desirable: int, undesirable: int, seed: int) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [row(rng, i < desirable) for i in range(desirable + undesirable)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


def accuracy(
    model: str, method: Method, ratio: float, home: Path, draws: Sequence[int] = DRAWS, **settings: float
) -> float:
    """The share of held-out pairs of a desirable and an undesirable row in which the former has the higher reward, as
    the mean over draws of the training rows."""
    config = Config.model_validate(
        {
            "home": str(home),
            "model": {"id": model, "dtype": "float32"},
            "data": {"max_length": 96},
            "train": {"dtype": "float32", "threads": 1},
            "kto": {"learning_rate": 1e-3, "beta": 0.2, "accumulate": 1, **settings},
        }
    )
    desirable = round(ROWS * ratio / (1 + ratio))
    judge = rows(HELD_OUT, HELD_OUT, seed=99)
    base = np.array(run(config, Work("none", judge=judge)).policy)
    drawn = (rows(desirable, ROWS - desirable, seed) for seed in draws)
    moved = [np.array(run(config, Work(method, train, judge)).policy) - base for train in drawn]
    return float(np.mean([auc(ratios[:HELD_OUT], ratios[HELD_OUT:]) for ratios in moved]))


def test_accuracy_survives_what_unweighted_trl_does_not(model: str, tmp_path: Path) -> None:
    balanced = accuracy(model, "kto", 1, tmp_path)
    assert balanced > 0.9, "the taste is learnt"
    ours = {ratio: accuracy(model, "kto", ratio, tmp_path) for ratio in (1 / 20, 1 / 5, 5, 20)}
    # A loss aversion of n_undesirable / n_desirable makes both weights 1; 1.0 is TRL's own max_grad_norm.
    unweighted = partial(accuracy, model, "trl_kto", home=tmp_path, draws=DRAWS[:1], max_grad_norm=1.0)
    trl = {r: unweighted(r, loss_aversion=1 / r) for r in (1 / 20, 20)}
    print(f"balanced {balanced:.3f}; ours {ours}; TRL without weights {trl}")
    assert min(ours.values()) >= balanced - 0.02, ours
    assert max(trl.values()) < balanced - 0.02, trl


def test_the_usual_clipping_undoes_the_weights(model: str, tmp_path: Path) -> None:
    """Why kto.max_grad_norm is not 1."""
    assert accuracy(model, "kto", 20, tmp_path, max_grad_norm=1.0) < accuracy(model, "kto", 20, tmp_path) - 0.02
