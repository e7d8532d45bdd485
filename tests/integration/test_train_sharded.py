"""A base shared by two workers (FSDP): the steps of one worker, and those of a run that nobody killed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import ray
from safetensors.torch import load_file

from kto_ray.config import Config
from kto_ray.records.snapshots import SnapshotManifest
from kto_ray.train.track import read_steps
from tests.support.sealed import config, killed_past_its_first_checkpoint, train_task
from tests.support.tiny import tiny_model
from tests.support.training import losses, weights

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def small(
    request: pytest.FixtureRequest, sealed: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, SnapshotManifest]:
    """A tiny model whose tokens are the embedded one's, and the snapshot as if sealed for it."""
    path = tiny_model(tmp_path_factory.mktemp("tiny"), tied=request.param)
    lopsided = {"desirable_weight": 4.0, "undesirable_weight": 0.1}  # so that likelihoods, and with them the KL, rise
    return path, dataclasses.replace(sealed.manifest, model=path, **lopsided)


def small_config(home: Path, model: str, train: dict[str, Any], **kto: Any) -> Config:
    settings = config(home, **{"learning_rate": 5e-3, **kto})
    return settings.model_copy(
        update={
            "model": settings.model.model_copy(update={"id": model}),
            "train": settings.train.model_copy(update={"threads": 1, "dtype": "float32", **train}),
        }
    )


SHARDED = {"workers": 2, "sharding": "fsdp"}


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "gradient checkpointing"])
def test_two_workers_that_share_the_base_take_the_steps_of_one(
    small: Any, sealed: Any, tmp_path: Path, checkpointing: Any
) -> None:
    model, sealed_for_it = small
    runs = []
    for name, how in (("one", {"micro_batches": 2}), ("two", {**SHARDED, "gradient_checkpointing": checkpointing})):
        settings = small_config(tmp_path, model, how, epochs=3)
        runs.append(ray.get(train_task.remote(settings, name, sealed_for_it, sealed.uri)))
    one, two = (run.history for run in runs)
    assert max(r.kl for r in one) > 0.01, "the KL term never mattered, so the test would not see it wrong"
    assert [r.loss for r in two] == pytest.approx([r.loss for r in one], abs=1e-4)
    assert [r.kl for r in two] == pytest.approx([r.kl for r in one], abs=1e-3)
    assert [r.grad_norm for r in two] == pytest.approx([r.grad_norm for r in one], rel=1e-3)
    shapes = [
        {k: v.shape for k, v in load_file(f"{run.adapter_dir}/adapter_model.safetensors").items()} for run in runs
    ]
    assert shapes[0] == shapes[1], "the adapter is saved whole"


@pytest.mark.slow
def test_a_killed_sharded_worker_goes_on_from_its_checkpoint(small: Any, sealed: Any, tmp_path: Path) -> None:
    """One epoch after another, so that the second finds all reference scores cached: no worker computes them alone."""
    model, sealed_for_it = small
    settings = small_config(tmp_path, model, SHARDED, epochs=30)
    whole = ray.get(train_task.remote(settings, "whole", sealed_for_it, sealed.uri))
    run = train_task.remote(settings, "killed", sealed_for_it, sealed.uri)
    progress = killed_past_its_first_checkpoint(settings)
    result = ray.get(run)
    assert progress.step < result.steps
    assert losses(result) == losses(whole)
    assert weights(result) == weights(whole)
    assert read_steps(f"{settings.home}/training/killed/metrics.jsonl") == result.history
