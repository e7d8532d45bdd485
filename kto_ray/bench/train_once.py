"""One measurement of `bench train`, in a process of its own: python -m kto_ray.bench.train_once WORK.json OUT.json"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback, set_seed
from trl import KTOTrainer

from kto_ray.bench.train import Measured, Work
from kto_ray.config import Config
from kto_ray.data.balance import interleave, rotate
from kto_ray.data.tokens import encode
from kto_ray.model import resolve_model
from kto_ray.train.batches import RowBatches
from kto_ray.train.kto import RowTrainer, kto_arguments, lora_config
from kto_ray.train.records import TrainJob
from kto_ray.train.reference import Scores

Row = dict[str, Any]


class Clock(TrainerCallback):  # type: ignore[misc]
    """Seconds of each optimizer step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.began = 0.0

    def on_step_begin(self, *unused: object, **more: object) -> None:
        self.began = time.perf_counter()

    def on_step_end(self, *unused: object, **more: object) -> None:
        self.seconds.append(time.perf_counter() - self.began)


class Ours(RowTrainer):
    """Our trainer, with the reference timed apart."""

    reference_s: list[float]

    def _reference(self, model: torch.nn.Module, inputs: Row) -> Scores:
        began = time.perf_counter()
        scores = super()._reference(model, inputs)
        self.reference_s.append(time.perf_counter() - began)
        return scores


class Trls(KTOTrainer):  # type: ignore[misc]
    """TRL as it is, with the precomputation timed."""

    reference_s = 0.0

    def _precompute_ref_logps(self, *arguments: Any) -> Dataset:
        began = time.perf_counter()
        dataset = super()._precompute_ref_logps(*arguments)
        self.reference_s = time.perf_counter() - began
        return dataset


class Table:
    """Rows in memory, read as RowBatches reads Ray Data."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows

    def iter_batches(self, *, batch_size: int, batch_format: str, prefetch_batches: int) -> Iterator[pa.Table]:
        for start in range(0, len(self.rows), batch_size):
            yield pa.Table.from_pylist(self.rows[start : start + batch_size])


def sealed(work: Work, tokenizer: Any) -> tuple[list[Row], list[Row]]:
    """The rows in training order: as text, for TRL, and as paired ids, for us (what a snapshot's shards hold)."""
    encoded = [encode(tokenizer, row["prompt"], row["completion"][0]["content"]) for row in work.rows]
    usable = [(row, ids) for row, ids in zip(work.rows, encoded, strict=True) if ids and len(ids[0]) < work.max_length]
    order = interleave(
        np.array([row["label"] for row, _ in usable]),
        np.unique([str(ids[0]) for _, ids in usable], return_inverse=True)[1],
        np.array([min(len(ids[0]) + len(ids[1]), work.max_length) for _, ids in usable]),
        work.micro_batch,
        seed=0,
    )
    ordered = [usable[i] for i in order]
    paired = []
    for (row, (prompt, answer)), other in zip(ordered, rotate(len(ordered), work.micro_batch), strict=True):
        room = work.max_length - len(prompt)
        kl_answer = ordered[other][1][1][:room]
        ids = {"prompt_ids": prompt, "completion_ids": answer[:room], "kl_completion_ids": kl_answer}
        paired.append({"label": row["label"], **ids})
    return [row for row, _ in ordered], paired


def measure(config: Config, work: Work) -> Measured:
    path = resolve_model(config.model)
    tokenizer = AutoTokenizer.from_pretrained(path, revision=config.model.revision)
    texts, rows = sealed(work, tokenizer)
    torch.set_num_threads(work.threads)
    with tempfile.TemporaryDirectory() as folder:
        job = bench_job(config, work, len(rows), folder)
        steps = len(rows) // work.micro_batch
        arguments = kto_arguments(job, f"{folder}/out", steps)
        arguments.gradient_checkpointing = work.variant == "trl_default"  # TRL's default
        arguments.precompute_ref_log_probs = work.variant == "trl_best"
        clock, common = Clock(), {"model": path, "processing_class": tokenizer, "peft_config": lora_config(job)}
        set_seed(0)
        if work.variant == "exact":
            one_row = Dataset.from_dict({"prompt_ids": [[0]], "completion_ids": [[0]], "label": [True]})
            batches = RowBatches(Table(rows), len(rows), work.micro_batch, rank=0, world=1)
            ours = Ours(job, batches, train_dataset=one_row, args=arguments, callbacks=[clock], **common)
            ours.reference_s = []
            ours.train()
            reference, history = ours.reference_s[1:], ours.state.log_history
            seconds = [s - r for s, r in zip(clock.seconds[1:], reference, strict=True)]
        else:
            trl = Trls(train_dataset=Dataset.from_list(texts), args=arguments, callbacks=[clock], **common)
            trl.train()
            reference, history = [trl.reference_s * (steps - 1) / steps], trl.state.log_history
            seconds = clock.seconds[1:]
        measured_rows = rows[work.micro_batch :]
    tokens = sum(len(row["prompt_ids"]) + len(row["completion_ids"]) for row in measured_rows)
    losses = [entry["loss"] for entry in history if "loss" in entry]
    return Measured(seconds, tokens, sum(reference), losses[-1])


def bench_job(config: Config, work: Work, rows: int, folder: str) -> TrainJob:
    return TrainJob(
        model=config.model,
        dtype=config.train.dtype,
        device="cpu",
        kto=config.kto.model_copy(update={"accumulate": 1, "micro_batch": work.micro_batch, "epochs": 1}),
        rows=rows,
        micro_batch=work.micro_batch,
        desirable_weight=1.0,
        undesirable_weight=1.0,
        max_length=work.max_length,
        seed=0,
        checkpoint_steps=10**6,
        gradient_checkpointing=False,
        step="exact",
        run="bench",
        progress_uri=f"{folder}/progress.json",
        references_uri=f"{folder}/references",
    )


if __name__ == "__main__":
    request = json.loads(Path(sys.argv[1]).read_text())
    result = measure(Config.model_validate(request["config"]), Work(**request["work"]))
    Path(sys.argv[2]).write_text(json.dumps(asdict(result)))
