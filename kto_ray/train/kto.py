"""KTO on one Ray Train worker: TRL's KTOTrainer with a LoRA adapter, fed by Ray Data.

The reference is the base model, that is the same weights with the adapter disabled (KTO, arXiv:2402.01306, eq. 7-8).
Rows come tokenized and paired from the snapshot; only where they come from, and what is logged, differs from TRL.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray.train
from datasets import Dataset
from peft import LoraConfig
from ray.data import DataIterator
from ray.train.huggingface.transformers import RayTrainReportCallback
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, IterableDataset
from transformers import AutoTokenizer, PrinterCallback
from trl import KTOConfig, KTOTrainer

from kto_ray.model import resolve_model
from kto_ray.paths import write_atomic
from kto_ray.train.records import StepRecord, TrainJob, TrainOutcome, TrainProgress

TRL_COLUMNS = {"kl_completion_ids": "KL_completion_ids"}  # ours -> TRL's, where they differ


def train_on_worker(job: TrainJob, stream: DataIterator) -> TrainOutcome:
    """Train one adapter from the base model, going on from the run's last checkpoint when there is one.

    `stream` yields all training rows in the snapshot's order, again in every epoch.

    Raises:
        RuntimeError: the stream ends before the rows that the snapshot promises.
    """
    context = ray.train.get_context()
    # A folder of this worker's own: Ray merges what the workers report into one checkpoint. Emptied first, for what a
    # killed worker left in it may be newer than the last checkpoint that was reported.
    scratch = Path.cwd() / f"worker-{context.get_world_rank()}"
    shutil.rmtree(scratch, ignore_errors=True)

    batches = RowBatches(
        stream=stream,
        rows=job.rows,
        micro_batch=job.micro_batch,
        rank=context.get_world_rank(),
        world=context.get_world_size(),
    )
    steps = job.kto.epochs * math.ceil(len(batches) / job.kto.accumulate)
    model_path = resolve_model(job.model)
    tokenizer = AutoTokenizer.from_pretrained(model_path, revision=job.model.revision)
    trainer = RowTrainer(
        job,
        batches,
        model=model_path,
        # TRL looks at one row to tell text from images; the rows themselves come from `batches`.
        train_dataset=Dataset.from_dict({"prompt_ids": [[0]], "completion_ids": [[0]], "label": [True]}),
        processing_class=tokenizer,
        peft_config=lora_config(job),
        args=kto_arguments(job, str(scratch), steps),
        callbacks=[RayTrainReportCallback()],
    )
    trainer.remove_callback(PrinterCallback)
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        trainer.train()
    else:
        with checkpoint.as_directory() as folder:
            trainer.train(resume_from_checkpoint=os.path.join(folder, RayTrainReportCallback.CHECKPOINT_NAME))
    shutil.rmtree(scratch, ignore_errors=True)
    return TrainOutcome(history=trainer.history(), failure=trainer.failure)


def lora_config(job: TrainJob) -> LoraConfig:
    return LoraConfig(
        r=job.kto.rank,
        lora_alpha=job.kto.alpha,
        lora_dropout=job.kto.dropout,
        target_modules=list(job.kto.target_modules),
        bias="none",
        task_type="CAUSAL_LM",
    )


def kto_arguments(job: TrainJob, output_dir: str, steps: int) -> KTOConfig:
    """TRL's settings. `steps` is the number of optimizer steps of the whole run, which the learning rate follows."""
    return KTOConfig(
        output_dir=output_dir,
        model_init_kwargs={"dtype": job.dtype, "revision": job.model.revision},
        use_cpu=job.device == "cpu",
        bf16=job.dtype == "bfloat16",
        gradient_checkpointing=job.gradient_checkpointing,
        beta=job.kto.beta,
        loss_type=job.kto.loss_type,
        desirable_weight=job.desirable_weight,
        undesirable_weight=job.undesirable_weight,
        disable_dropout=job.kto.dropout == 0,  # TRL would switch the adapter's own dropout off too
        max_length=job.max_length,
        per_device_train_batch_size=job.micro_batch,
        gradient_accumulation_steps=job.kto.accumulate,
        max_steps=steps,
        learning_rate=job.kto.learning_rate,
        max_grad_norm=job.kto.max_grad_norm,
        seed=job.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would write an average over a NaN
        save_strategy="steps",
        save_steps=job.checkpoint_steps,
        save_total_limit=1,
        ddp_find_unused_parameters=False,
        report_to="none",
        disable_tqdm=True,
    )


class RowBatches(IterableDataset[list[dict[str, Any]]]):
    """This worker's micro-batches of rows, in the snapshot's order.

    Every worker reads the whole stream and takes its slice: of each `micro_batch * world` rows, worker k takes the k-th
    `micro_batch`. So a micro-batch is the one that the snapshot paired, whatever the number of workers, and no row is
    dropped to make shards equal (which `streaming_split` over workers does). A last, partial group is split evenly;
    fewer rows than workers there cannot be split and are left out.
    """

    def __init__(self, stream: DataIterator, rows: int, micro_batch: int, rank: int, world: int) -> None:
        self.stream = stream
        self.rows = rows
        self.group = micro_batch * world
        self.rank = rank
        self.world = world

    def __len__(self) -> int:
        full, rest = divmod(self.rows, self.group)
        return full + (rest >= self.world)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        groups = iter(self.stream.iter_batches(batch_size=self.group, batch_format="pyarrow", prefetch_batches=2))
        for index in range(len(self)):
            expected = min(self.group, self.rows - index * self.group)
            table: pa.Table | None = next(groups, None)
            if table is None or table.num_rows != expected:
                got = index * self.group + (0 if table is None else table.num_rows)
                raise RuntimeError(
                    f"the snapshot's manifest promises {self.rows} training rows, its shards held {got}: "
                    "the snapshot is damaged; seal a new one"
                )
            low = self.rank * expected // self.world
            high = (self.rank + 1) * expected // self.world
            names = [TRL_COLUMNS.get(name, name) for name in table.column_names]
            yield table.rename_columns(names).slice(low, high - low).to_pylist()


class RowTrainer(KTOTrainer):  # type: ignore[misc]  # TRL is not typed
    """TRL's trainer on rows that are already tokenized and paired, logging throughput and stopping at a NaN."""

    def __init__(self, job: TrainJob, batches: RowBatches, **trl_arguments: Any) -> None:
        super().__init__(**trl_arguments)
        self.job = job
        self.batches = batches
        self.failure: str | None = None
        self._tokens_logged = 0
        self._logged_at = 0.0

    def _prepare_dataset(self, dataset: Dataset, *unused: object) -> Dataset:
        return dataset

    def get_train_dataloader(self) -> DataLoader[list[dict[str, Any]]]:
        # Not prepared by accelerate, which would deal the rows out among the workers a second time.
        self._logged_at = time.perf_counter()
        return DataLoader(self.batches, batch_size=None, collate_fn=self.data_collator)

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LambdaLR:
        """Linear warm-up, then linear to zero, as TRL's default, but never at zero: a run may have 20 steps only."""
        warmup = round(self.job.kto.warmup_share * num_training_steps)

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / (warmup + 1)
            return (num_training_steps - step) / (num_training_steps - warmup)

        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, factor)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        is_step = "loss" in logs
        if is_step:
            now = time.perf_counter()
            logs["tokens"] = self._total_train_tokens - self._tokens_logged
            logs["seconds"] = now - self._logged_at
            logs["rows"] = self._rows_used()
            self._tokens_logged, self._logged_at = self._total_train_tokens, now
        super().log(logs, start_time)
        if is_step and not (math.isfinite(logs["loss"]) and math.isfinite(logs["grad_norm"])):
            self._fail(logs)
        elif is_step and self.args.process_index == 0:  # never a NaN: it would not be JSON
            self._write_progress(logs)

    def _rows_used(self) -> int:
        """Rows of all workers that the run has used, this step's included."""
        epoch_steps = math.ceil(len(self.batches) / self.job.kto.accumulate)
        epochs, step = divmod(self.state.global_step, epoch_steps)
        in_epoch = min(step * self.job.kto.accumulate * self.batches.group, self.batches.rows)
        return int(epochs * self.batches.rows + in_epoch)

    def _fail(self, logs: dict[str, float]) -> None:
        # Stop rather than raise: Ray Train would restart a worker that raises, and the same rows end the same way. The
        # loss is averaged over the workers, so all of them stop at this step; nothing of it is saved.
        self.failure = (
            f"training diverged at step {self.state.global_step} of {self.state.max_steps}: loss {logs['loss']}, "
            f"gradient norm {logs['grad_norm']}, learning rate {logs['learning_rate']:.2g}, after {logs['rows']} rows; "
            "lower kto.learning_rate, or look at those rows"
        )
        self.control.should_training_stop = True
        self.control.should_save = False

    def _write_progress(self, logs: dict[str, float]) -> None:
        progress = TrainProgress(
            step=self.state.global_step,
            steps=self.state.max_steps,
            loss=logs["loss"],
            tokens_per_s=logs["tokens"] / logs["seconds"],
            pid=os.getpid(),
            at=time.time(),
        )
        write_atomic(self.job.progress_uri, json.dumps(asdict(progress)).encode())

    def history(self) -> tuple[StepRecord, ...]:
        """A record a step, those before a restart included: the trainer's state travels in the checkpoint."""
        return tuple(
            StepRecord(
                step=int(entry["step"]),
                rows=int(entry["rows"]),
                loss=entry["loss"],
                kl=entry["kl"],
                reward_desirable=entry.get("rewards/chosen"),
                reward_undesirable=entry.get("rewards/rejected"),
                margin=entry.get("rewards/margins"),
                grad_norm=entry["grad_norm"],
                learning_rate=entry["learning_rate"],
                tokens=int(entry["tokens"]),
                seconds=entry["seconds"],
                tokens_per_s=entry["tokens"] / entry["seconds"],
            )
            for entry in self.state.log_history
            if "loss" in entry
        )
