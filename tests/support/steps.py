"""Twenty steps on the same rows by our trainer and by TRL's, and what each of them showed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from ray.data import from_items
from transformers import TrainerCallback, set_seed
from trl import KTOTrainer

from kto_ray.bench.sealed_rows import as_said
from kto_ray.config import Config
from kto_ray.config.learning import KtoSection, TrainSection
from kto_ray.data.balance import rotate
from kto_ray.data.tokens import encode
from kto_ray.records.training import TrainJob
from kto_ray.train.batches import RowBatches
from kto_ray.train.kto import kto_arguments, policy
from kto_ray.train.trainer import RowTrainer

MICRO, STEPS = 4, 20
ROWS = MICRO * STEPS
WEIGHTS = (1.25, 0.8)


@dataclass(frozen=True)
class Run:
    """What each of the steps showed."""

    loss: list[float]
    kl: list[float]
    chosen: list[float]
    rejected: list[float]
    grads: list[dict[str, torch.Tensor]]
    tokens: int


class Grads(TrainerCallback):  # type: ignore[misc]  # not typed
    def __init__(self) -> None:
        self.steps: list[Any] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.steps.append({n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad})


class Peer(KTOTrainer):  # type: ignore[misc]  # not typed
    """TRL as it is, on our learning rate's schedule."""

    job: TrainJob
    create_scheduler = RowTrainer.create_scheduler


def conversations() -> list[dict[str, Any]]:
    rng = random.Random(0)
    words = ["tea", "snow", "piano", "bread", "river", "owls", "maps", "stars"]

    def talk(n: int) -> str:
        return " ".join(rng.choice(words) for _ in range(n))

    return [
        {
            "prompt": [{"role": "user", "content": talk(rng.randint(1, 30))}],
            "completion": [{"role": "assistant", "content": talk(rng.randint(1, 40))}],
            "label": i % 4 != 1 if i % 8 < 4 else i % 2 == 0,
        }
        for i in range(ROWS)
    ]


def job(tmp_path: Path, step: str, loss_type: str = "kto", gradient_checkpointing: bool = False) -> TrainJob:
    return TrainJob(
        model=Config().model,
        dtype="float32",
        train=TrainSection(step=step, checkpoint_steps=1000, gradient_checkpointing=gradient_checkpointing),
        kto=KtoSection(beta=0.2, loss_type=loss_type, learning_rate=1e-3, micro_batch=MICRO, accumulate=1),
        rows=ROWS,
        micro_batch=MICRO,
        desirable_weight=WEIGHTS[0],
        undesirable_weight=WEIGHTS[1],
        max_length=64,  # cuts some answers off
        seed=7,
        home=str(tmp_path),
        run="r",
    )


def ours(model_path: Any, tokenizer: Any, tmp_path: Path, start: Any = None, **which: Any) -> Run:
    """Our trainer on our rows: tokenized by `encode`, paired by `rotate`, cut as a snapshot's shards are."""
    this = job(tmp_path, "exact", **which)
    talks = conversations()
    ids: list[Any] = [encode(tokenizer, c["prompt"], c["completion"][0]["content"]) for c in talks]
    room = [this.max_length - len(prompt) for prompt, _ in ids]
    rows = [
        {
            "label": talk["label"],
            "prompt_ids": prompt,
            "completion_ids": answer[:space],
            "kl_completion_ids": ids[other][1][:space],
        }
        for talk, (prompt, answer), space, other in zip(talks, ids, room, rotate(ROWS, MICRO), strict=True)
    ]
    batches = RowBatches(from_items(rows).iterator(), ROWS, MICRO, rank=0, world=1)
    grads = Grads()
    set_seed(7)
    model, fresh = policy(this, model_path, start)
    trainer = RowTrainer(
        this,
        batches,
        model=model,
        train_dataset=Dataset.from_dict({"prompt_ids": [[0]], "completion_ids": [[0]], "label": [True]}),
        processing_class=tokenizer,
        peft_config=fresh,
        args=kto_arguments(this, str(tmp_path / "ours"), STEPS),
        callbacks=[grads],
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "trained"))
    return found(trainer, grads)


def trls(model_path: Any, tokenizer: Any, tmp_path: Path, start: Any = None, **which: Any) -> Run:
    this = job(tmp_path, "trl", **which)
    grads = Grads()
    set_seed(7)
    model, fresh = policy(this, model_path, start)
    trainer = Peer(
        model=model,
        train_dataset=Dataset.from_list(conversations()),
        processing_class=tokenizer,
        peft_config=fresh,
        args=kto_arguments(this, str(tmp_path / "trl"), STEPS),
        callbacks=[grads],
    )
    trainer.train_dataset = as_said(trainer.train_dataset, tokenizer)
    trainer.job = this
    trainer.train()
    return found(trainer, grads)


def found(trainer: Any, grads: Any) -> Run:
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    columns = ("loss", "kl", "rewards/chosen", "rewards/rejected")
    loss, kl, chosen, rejected = ([s[c] for s in steps] for c in columns)
    return Run(loss, kl, chosen, rejected, grads.steps, trainer._total_train_tokens)
