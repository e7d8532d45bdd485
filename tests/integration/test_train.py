"""Real training runs, tiny: 24 rows in micro-batches of 4, the embedded model, one Ray Train worker."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from kto_ray.adapters.files import check_adapter, read_sound
from kto_ray.adapters.publish import publish
from kto_ray.config import Config
from kto_ray.data.stream import training_dataset
from kto_ray.model import resolve_model
from kto_ray.processor import precision
from kto_ray.records.training import TrainingDiverged, TrainResult
from kto_ray.train.job import read_progress
from kto_ray.train.track import read_steps
from tests.support.sealed import (
    CHECKPOINT_STEPS,
    MICRO,
    ROWS,
    STEPS,
    config,
    killed_past_its_first_checkpoint,
    train_task,
)
from tests.support.training import losses, train, weights

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]


@pytest.fixture(scope="module")
def whole_run(sealed: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, TrainResult]:
    settings = config(tmp_path_factory.mktemp("home"))
    return settings, ray.get(train_task.remote(settings, "run", sealed.manifest, sealed.uri))


def test_learns_and_reports(whole_run: Any) -> None:
    settings, result = whole_run
    assert [record.rows for record in result.history] == list(range(MICRO, ROWS + 1, MICRO))
    assert result.steps == STEPS
    assert all(math.isfinite(v) for r in result.history for v in (r.loss, r.kl, r.grad_norm, r.tokens_per_s))
    # Before the first step policy and reference are one: each loss is its weight times sigmoid(0).
    assert result.loss_first == pytest.approx((1.25 + 1.0) / 4, abs=1e-6)
    assert result.loss_last < result.loss_first
    assert result.rewards_desirable > result.rewards_undesirable
    assert result.tokens_per_s > 0 and result.train_s > 0
    progress = read_progress(settings, "run")
    assert progress is not None and (progress.step, progress.steps) == (STEPS, STEPS)
    assert read_steps(f"{settings.home}/training/run/metrics.jsonl") == result.history
    assert Path(settings.home, "reports", "run-training.svg").is_file()


def test_counts_real_tokens_only(whole_run: Any, sealed: Any) -> None:
    table = pq.read_table([f"{sealed.uri}/{shard.name}" for shard in sealed.manifest.shards])
    real = sum(len(row["prompt_ids"]) + len(row["completion_ids"]) for row in table.to_pylist())
    assert sum(record.tokens for record in whole_run[1].history) == real


def test_the_adapter_loads_and_changes_the_model(whole_run: Any, sealed: Any) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    settings, result = whole_run
    version = publish(settings, result.adapter_dir, 1, sealed.manifest, None, created_at=1.0)
    check_adapter(version, settings.serve.max_lora_rank, ())
    base = AutoModelForCausalLM.from_pretrained(resolve_model(settings.model), dtype=torch.float32)
    model = PeftModel.from_pretrained(base, version.uri)
    ids = torch.arange(10, 30).unsqueeze(0)
    with torch.no_grad():
        tuned = model(input_ids=ids).logits
        with model.disable_adapter():
            untuned = model(input_ids=ids).logits
    assert (tuned - untuned).abs().max() > 0.01


@pytest.mark.slow
def test_two_workers_take_the_steps_of_one(sealed: Any, tmp_path: Path) -> None:
    """The same global batch of two sealed micro-batches, in fp32: on one worker, and one on each of two (gloo)."""
    steps = []
    for workers, name in ((1, "one"), (2, "two")):
        sizes = {"workers": workers, "micro_batches": 2 // workers, "threads": 1, "dtype": "float32"}
        settings = config(tmp_path)
        settings = settings.model_copy(update={"train": settings.train.model_copy(update=sizes)})
        steps.append(ray.get(train_task.remote(settings, name, sealed.manifest, sealed.uri)).history)
    one, two = steps
    assert [r.rows for r in one] == [r.rows for r in two] == list(range(2 * MICRO, ROWS + 1, 2 * MICRO))
    assert [r.loss for r in two] == pytest.approx([r.loss for r in one], abs=1e-4)
    assert [r.kl for r in two] == pytest.approx([r.kl for r in one], abs=1e-3)
    assert [r.tokens for r in two] == [r.tokens for r in one]


def test_calling_again_after_the_end_trains_nothing_more(whole_run: Any, sealed: Any) -> None:
    settings, result = whole_run
    again = ray.get(train_task.remote(settings, "run", sealed.manifest, sealed.uri))
    assert again.history == result.history
    assert weights(again) == weights(result)


@pytest.mark.slow
def test_the_same_snapshot_settings_and_seed_give_the_same_bytes(whole_run: Any, sealed: Any) -> None:
    """With the reference computed anew and with the one that the first run left."""
    settings, result = whole_run
    elsewhere = settings.model_copy(update={"home": f"{settings.home}-again"})
    for repeated, name in ((elsewhere, "run"), (settings, "cached")):
        assert weights(ray.get(train_task.remote(repeated, name, sealed.manifest, sealed.uri))) == weights(result)


def test_loss_is_that_of_plain_trl(whole_run: Any, sealed: Any, tmp_path: Path) -> None:
    """TRL itself, given the conversations: its own template, tokens, pairing, schedule and LoRA from the same seed."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import KTOConfig, KTOTrainer

    settings, result = whole_run
    kto = settings.kto
    trainer = KTOTrainer(
        model=resolve_model(settings.model),
        train_dataset=Dataset.from_list(sealed.conversations),
        peft_config=LoraConfig(
            r=kto.rank, lora_alpha=kto.alpha, target_modules=list(kto.target_modules), task_type="CAUSAL_LM"
        ),
        args=KTOConfig(
            output_dir=str(tmp_path),
            model_init_kwargs={"dtype": result.dtype},
            use_cpu=True,
            bf16=result.dtype == "bfloat16",
            gradient_checkpointing=False,
            beta=kto.beta,
            desirable_weight=1.25,
            per_device_train_batch_size=MICRO,
            num_train_epochs=1,
            learning_rate=kto.learning_rate,
            seed=sealed.manifest.seed,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
    )
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert result.dtype == precision("cpu", "auto").dtype
    # bf16 sums depend on how many threads share them, hence not to the last bit
    assert losses(result) == pytest.approx([entry["loss"] for entry in logged], abs=5e-3)
    assert [r.kl for r in result.history] == pytest.approx([entry["kl"] for entry in logged], abs=0.1)
    assert [r.learning_rate for r in result.history] == pytest.approx([entry["learning_rate"] for entry in logged])


def in_4_bits(sealed: Any, home: Path, step: str) -> tuple[Config, TrainResult]:
    """QLoRA, by our step or by TRL's."""
    settings = config(home)
    train = settings.train.model_copy(update={"quantize": "nf4", "step": step})
    settings = settings.model_copy(update={"train": train})
    return settings, ray.get(train_task.remote(settings, step, sealed.manifest, sealed.uri))


def test_a_4_bit_base_learns_nearly_what_the_whole_one_does(whole_run: Any, sealed: Any, tmp_path: Path) -> None:
    settings, result = in_4_bits(sealed, tmp_path, "exact")
    ours, whole = losses(result), losses(whole_run[1])
    assert ours[0] == pytest.approx((1.25 + 1.0) / 4, abs=1e-6), result.history
    assert ours == pytest.approx(whole, abs=0.1) and ours[1:] != pytest.approx(whole[1:], abs=1e-4)
    assert read_sound(result.adapter_dir, settings.serve.max_lora_rank).rank == settings.kto.rank


@pytest.mark.slow
def test_a_4_bit_base_learns_as_by_trl(sealed: Any, tmp_path: Path) -> None:
    ours, trl = (losses(in_4_bits(sealed, tmp_path, step)[1]) for step in ("exact", "trl"))
    assert ours == pytest.approx(trl, abs=1e-2)


def test_a_killed_worker_goes_on_from_its_checkpoint(whole_run: Any, sealed: Any, tmp_path: Path) -> None:
    settings = config(tmp_path)
    run = train_task.remote(settings, "killed", sealed.manifest, sealed.uri)
    progress = killed_past_its_first_checkpoint(settings)
    result = ray.get(run)
    after = read_progress(settings, "killed")
    assert progress.step < STEPS and after is not None and after.pid != progress.pid
    # Every row once, in order: the records of the checkpointed steps and of those after the restart tile the snapshot,
    # and the adapter is that of the run that nobody killed, bit for bit.
    assert [record.rows for record in result.history] == list(range(MICRO, ROWS + 1, MICRO))
    assert losses(result) == losses(whole_run[1])
    assert weights(result) == weights(whole_run[1])
    # The steps that were logged after the checkpoint, and then again, are there once.
    assert read_steps(f"{settings.home}/training/killed/metrics.jsonl") == result.history


@pytest.mark.slow
def test_a_run_whose_driver_died_goes_on_from_its_checkpoint(whole_run: Any, sealed: Any, tmp_path: Path) -> None:
    settings = config(tmp_path)
    run = train_task.options(max_retries=0).remote(settings, "orphan", sealed.manifest, sealed.uri)
    deadline = time.monotonic() + 240
    while (progress := read_progress(settings, "orphan")) is None or progress.step <= CHECKPOINT_STEPS:
        assert time.monotonic() < deadline, "the run never passed its first checkpoint"
        time.sleep(0.02)
    ray.cancel(run, force=True)
    with pytest.raises((ray.exceptions.WorkerCrashedError, ray.exceptions.TaskCancelledError)):
        ray.get(run)
    result = ray.get(train_task.remote(settings, "orphan", sealed.manifest, sealed.uri))
    assert [record.rows for record in result.history] == list(range(MICRO, ROWS + 1, MICRO))
    assert weights(result) == weights(whole_run[1])


def test_a_diverging_run_fails_with_its_cause(sealed: Any, tmp_path: Path) -> None:
    settings = config(tmp_path, learning_rate=1e30)
    with pytest.raises(TrainingDiverged, match=r"diverged at step \d of 6.*lower kto.learning_rate"):
        ray.get(train_task.remote(settings, "nan", sealed.manifest, sealed.uri))


@pytest.mark.parametrize(("missing", "thumbs"), [("desirable", "up"), ("undesirable", "down")])
def test_one_class_is_refused_by_name(sealed: Any, tmp_path: Path, missing: Any, thumbs: Any) -> None:
    lopsided = dataclasses.replace(sealed.manifest, **{f"n_{missing}": 0})
    with pytest.raises(ValueError, match=rf"no {missing} one.*thumbs {thumbs}"):
        train(config(tmp_path), "never", lopsided, sealed.uri)
    assert not list(tmp_path.iterdir())


def test_another_models_tokens_are_refused(sealed: Any, tmp_path: Path) -> None:
    foreign = dataclasses.replace(sealed.manifest, model="Qwen/Qwen2.5-0.5B-Instruct")
    with pytest.raises(ValueError, match="Qwen"):
        train(config(tmp_path), "never", foreign, sealed.uri)


def test_a_shard_with_rows_missing_is_named(sealed: Any, tmp_path: Path) -> None:
    longer = dataclasses.replace(sealed.manifest, n_desirable=ROWS)
    settings = config(tmp_path)
    settings = settings.model_copy(update={"train": settings.train.model_copy(update={"max_failures": 0})})
    with pytest.raises(ray.exceptions.RayTaskError, match="promises 36 training rows, its shards held 24"):
        ray.get(train_task.remote(settings, "short", longer, sealed.uri))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_workers_share_the_rows_without_loss(sealed: Any, world: Any) -> None:
    """22 rows in groups of 4 a worker: every worker gets as many micro-batches, and together they see each row once."""
    from kto_ray.train.batches import RowBatches

    table = pa.table({"label": [True] * 22, "prompt_ids": [[i] for i in range(22)]})
    seen: list[list[list[int]]] = []
    for rank in range(world):
        stream = ray.data.from_arrow([table.slice(0, 13), table.slice(13)]).iterator()
        batches = RowBatches(stream, rows=22, micro_batch=MICRO, rank=rank, world=world)
        seen.append([[row["prompt_ids"][0] for row in batch] for batch in batches])
        assert len(seen[-1]) == len(batches)
    assert [row for group in zip(*seen, strict=True) for batch in group for row in batch] == list(range(22))
    assert json.dumps(seen[0][0]) == "[0, 1, 2, 3]"


@pytest.mark.parametrize("world", [1, 2])
def test_every_workers_micro_batches_are_the_sealed_ones(sealed: Any, world: Any) -> None:
    """Rows in the sealed order, both classes in each micro-batch, and its KL pairs from within it."""
    from kto_ray.train.batches import RowBatches

    order = pq.read_table([f"{sealed.uri}/{shard.name}" for shard in sealed.manifest.shards])["prompt_ids"].to_pylist()
    for rank in range(world):
        stream = training_dataset(sealed.uri, sealed.manifest).iterator()
        batches = list(RowBatches(stream, rows=ROWS, micro_batch=MICRO, rank=rank, world=world))
        assert len(batches) == STEPS // world
        for index, batch in enumerate(batches):
            first = (index * world + rank) * MICRO
            assert [row["prompt_ids"] for row in batch] == order[first : first + MICRO]
            assert {row["label"] for row in batch} == {True, False}
            assert all(row["KL_completion_ids"] == batch[i - 1]["completion_ids"] for i, row in enumerate(batch))
