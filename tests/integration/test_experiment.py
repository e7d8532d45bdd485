"""One experiment of the learning benchmarks by every method, on a tiny model in fp32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kto_ray.bench.experiment import Work
from kto_ray.bench.inside.experiment import run
from kto_ray.config import Config
from tests.support.experiments import judged, tiny_config

pytestmark = pytest.mark.integration

JUDGED = 6


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return tiny_config(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def policies(config: Config) -> dict[str, np.ndarray]:
    methods = ("none", "kto", "trl_kto", "concave", "sft", "dpo", "simpo")
    return {m: np.array(run(config, Work(m, judged(24), judged(JUDGED))).policy) for m in methods}  # type: ignore[arg-type]


def test_every_method_learns_what_is_liked(policies: dict[str, np.ndarray]) -> None:
    for method in ("kto", "trl_kto", "concave", "sft", "dpo", "simpo"):
        moved = (policies[method] - policies["none"]).reshape(-1, 2)
        assert (moved[:, 1] > moved[:, 0]).all(), method


def test_ours_is_trls_and_the_others_are_not(policies: dict[str, np.ndarray]) -> None:
    assert policies["kto"] == pytest.approx(policies["trl_kto"], abs=1e-2)
    for other in ("concave", "sft", "dpo", "simpo"):
        assert np.abs(policies[other] - policies["kto"]).max() > 0.05, other


def test_answers_a_saved_adapter_and_where_it_is_taken_up(config: Config, tmp_path: Path) -> None:
    folder = str(tmp_path / "adapter")
    ask = [row["prompt"] for row in judged(4)]
    first = run(config, Work("kto", judged(24), judged(JUDGED), ask, max_tokens=5, save=folder))
    assert len(first.answers) == len(first.answer_tokens) == 4
    assert all(reason in ("stop", "length") for _, reason in first.answers)
    again = run(config, Work("none", judge=judged(JUDGED), start=folder))
    assert again.policy == pytest.approx(first.policy, abs=1e-4)
    further = run(config, Work("kto", judged(24), judged(JUDGED), start=folder))
    assert np.abs(np.array(further.policy) - np.array(first.policy)).max() > 0.05
