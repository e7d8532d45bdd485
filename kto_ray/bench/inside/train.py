"""One measurement of `bench train`, the inside of its process."""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback, set_seed
from trl import KTOTrainer

from kto_ray.bench.own_process import answer
from kto_ray.bench.sealed_rows import (
    Memory,
    Row,
    job_of,
    sealed,
)
from kto_ray.bench.train import Measured, Work
from kto_ray.config import Config
from kto_ray.model import resolve_model
from kto_ray.processor import precision
from kto_ray.train.batches import RowBatches
from kto_ray.train.kto import kto_arguments, lora_config
from kto_ray.train.reference import Scores
from kto_ray.train.trainer import RowTrainer

PRODUCT = 2048  # rows and columns


def now() -> float:
    """Seconds, once the device has done all that it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Clock(TrainerCallback):  # type: ignore[misc]
    """Seconds of each optimizer step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.began = 0.0

    def on_step_begin(self, *unused: object, **more: object) -> None:
        self.began = now()

    def on_step_end(self, *unused: object, **more: object) -> None:
        self.seconds.append(now() - self.began)


class Ours(RowTrainer):
    """Our trainer, with the reference timed apart."""

    reference_s: list[float]

    def _reference(self, model: torch.nn.Module, inputs: Row) -> Scores:
        began = now()
        scores = super()._reference(model, inputs)
        self.reference_s.append(now() - began)
        return scores


class Trls(KTOTrainer):  # type: ignore[misc]
    """TRL as it is, with the precomputation timed."""

    reference_s = 0.0

    def _precompute_ref_logps(self, *arguments: Any) -> Dataset:
        began = now()
        dataset = super()._precompute_ref_logps(*arguments)
        self.reference_s = now() - began
        return dataset


def matmul_flops(dtype: torch.dtype, device: str) -> float:
    """What large products of two matrices reach on these threads or this GPU, in FLOP a second: the best of a few."""
    a, b = (torch.randn(PRODUCT, PRODUCT, dtype=dtype, device=device) for _ in range(2))
    seconds = []
    for _ in range(8):
        began = now()
        a @ b
        seconds.append(now() - began)
    return 2 * PRODUCT**3 / min(seconds)


def measure(config: Config, work: Work) -> Measured:
    kto = config.kto.model_copy(update={"accumulate": 1, "epochs": 1})
    config = config.model_copy(update={"kto": kto, "data": config.data.model_copy(update={"seed": 0})})
    path = resolve_model(config.model)
    tokenizer = AutoTokenizer.from_pretrained(path, revision=config.model.revision)
    texts, rows = _longest_first(*sealed(config, work.rows, tokenizer), kto.micro_batch)
    tokens = _tokens(rows.slice(kto.micro_batch))  # of the measured steps
    torch.set_num_threads(config.train.threads)
    dtype = precision(config.train.device, config.train.dtype).dtype
    flops = matmul_flops(getattr(torch, dtype), "cpu" if config.train.device == "cpu" else "cuda")
    with tempfile.TemporaryDirectory() as folder:
        job = job_of(config, len(rows), (1.0, 1.0), folder)
        steps = len(rows) // kto.micro_batch
        trl = job.train.model_copy(update={"step": "trl"})
        arguments = kto_arguments(job if work.variant == "exact" else replace(job, train=trl), f"{folder}/out", steps)
        arguments.gradient_checkpointing = work.variant == "trl_default"  # TRL's default
        arguments.precompute_ref_log_probs = work.variant == "trl_best"
        clock, common = Clock(), {"model": path, "processing_class": tokenizer, "peft_config": lora_config(job)}
        set_seed(0)
        if work.variant == "exact":
            one_row = Dataset.from_dict({"prompt_ids": [[0]], "completion_ids": [[0]], "label": [True]})
            batches = RowBatches(Memory(rows), len(rows), kto.micro_batch, rank=0, world=1)
            ours = Ours(job, batches, train_dataset=one_row, args=arguments, callbacks=[clock], **common)
            ours.reference_s = []
            ours.train()
            trainer: KTOTrainer = ours
            reference, history = ours.reference_s[1:], ours.state.log_history
            seconds = [s - r for s, r in zip(clock.seconds[1:], reference, strict=True)]
        else:
            trl = Trls(train_dataset=Dataset.from_list(texts), args=arguments, callbacks=[clock], **common)
            trl.train()
            trainer = trl
            reference, history = [trl.reference_s * tokens / _tokens(rows)], trl.state.log_history
            seconds = clock.seconds[1:]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    parameters = sum(p.numel() for p in trainer.model.parameters() if not p.requires_grad)
    return Measured(seconds, tokens, sum(reference), losses[-1], parameters, flops)


def _tokens(rows: pa.Table) -> int:
    return sum(len(row["prompt_ids"]) + len(row["completion_ids"]) for row in rows.to_pylist())


def _longest_first(texts: list[Row], rows: pa.Table, micro_batch: int) -> tuple[list[Row], pa.Table]:
    """The same micro-batches, the one with the longest row before the others: the step that warms up then touches all
    memory that the measured ones need, as a training has after a while."""
    lengths = np.array([len(row["prompt_ids"]) + len(row["completion_ids"]) for row in rows.to_pylist()])
    longest = int(lengths.reshape(-1, micro_batch).max(axis=1).argmax())
    moved = np.roll(np.arange(len(rows)), -longest * micro_batch)
    return [texts[i] for i in moved], rows.take(moved)


if __name__ == "__main__":
    answer(lambda asked: asdict(measure(Config.model_validate(asked["config"]), Work(**asked["work"]))))
