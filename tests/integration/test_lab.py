"""One experiment of `bench learn` by every method, on a tiny model in fp32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kto_ray.bench.experiment import Work
from kto_ray.bench.inside.experiment import run
from kto_ray.config import Config
from tests.support.tiny import tiny_model

pytestmark = pytest.mark.integration

JUDGED = 6


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    model = {"id": tiny_model(tmp_path_factory.mktemp("tiny")), "dtype": "float32"}
    kto = {"micro_batch": 4, "accumulate": 1, "learning_rate": 1e-2}
    return Config.model_validate(
        {"model": model, "train": {"dtype": "float32"}, "kto": kto, "data": {"max_length": 64}}
    )


def rows(n: int) -> list[dict[str, Any]]:
    return [
        {
            "prompt": [{"role": "user", "content": f"Number {i // 2}?"}],
            "completion": [{"role": "assistant", "content": "yes, fine" if i % 2 else "no, never at all"}],
            "label": bool(i % 2),
            "conversation": str(i // 2),
        }
        for i in range(n)
    ]


@pytest.fixture(scope="module")
def policies(config: Config) -> dict[str, np.ndarray]:
    methods = ("none", "kto", "trl_kto", "concave", "sft", "dpo")
    return {m: np.array(run(config, Work(m, rows(24), rows(JUDGED))).policy) for m in methods}  # type: ignore[arg-type]


def test_every_method_learns_what_is_liked(policies: dict[str, np.ndarray]) -> None:
    for method in ("kto", "trl_kto", "concave", "sft", "dpo"):
        moved = (policies[method] - policies["none"]).reshape(-1, 2)
        assert (moved[:, 1] > moved[:, 0]).all(), method


def test_ours_is_trls_and_the_others_are_not(policies: dict[str, np.ndarray]) -> None:
    assert policies["kto"] == pytest.approx(policies["trl_kto"], abs=1e-2)
    for other in ("concave", "sft", "dpo"):
        assert np.abs(policies[other] - policies["kto"]).max() > 0.05, other


def test_answers_a_saved_adapter_and_where_it_is_taken_up(config: Config, tmp_path: Path) -> None:
    folder = str(tmp_path / "adapter")
    ask = [row["prompt"] for row in rows(4)]
    first = run(config, Work("kto", rows(24), rows(JUDGED), ask, max_tokens=5, save=folder))
    assert len(first.answers) == len(first.answer_tokens) == 4
    assert all(reason in ("stop", "length") for _, reason in first.answers)
    again = run(config, Work("none", judge=rows(JUDGED), start=folder))
    assert again.policy == pytest.approx(first.policy, abs=1e-4)
    further = run(config, Work("kto", rows(24), rows(JUDGED), start=folder))
    assert np.abs(np.array(further.policy) - np.array(first.policy)).max() > 0.05
