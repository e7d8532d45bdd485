"""KTO on one Ray Train worker: TRL's KTOTrainer with a LoRA adapter, fed by Ray Data.

The reference is the base model, that is the same weights with the adapter disabled (KTO, arXiv:2402.01306, eq. 7-8), or
a frozen copy of the champion that the policy starts from (`kto.reference`).
TRL keeps the loop, the optimizer and the checkpoints. Rows come tokenized and paired from the snapshot, and the step is
ours (`step`), with the reference's log-probabilities cached (`reference`); `train.step: trl` takes TRL's own.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from ray.data import DataIterator
from ray.train.huggingface.transformers import RayTrainReportCallback
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
from trl import KTOConfig, KTOTrainer
from trl.trainer.utils import use_adapter

from kto_ray.adapter import fetch
from kto_ray.environment import yield_to_serving
from kto_ray.model import resolve_model
from kto_ray.paths import join, write_atomic
from kto_ray.train.batches import RowBatches, collate
from kto_ray.train.records import StepRecord, TrainJob, TrainOutcome, TrainProgress
from kto_ray.train.reference import ReferenceCache, Scores, fingerprint
from kto_ray.train.step import LossTerms, attach, kto_loss


def train_on_worker(job: TrainJob, stream: DataIterator) -> TrainOutcome:
    """Train one adapter, going on from the run's last checkpoint when there is one.

    `stream` yields all training rows in the snapshot's order, again in every epoch.

    Raises:
        RuntimeError: the stream ends before the rows that the snapshot promises.
        ValueError: the adapter to start from is damaged, or of another shape than kto.rank and kto.target_modules.
    """
    context = ray.train.get_context()
    if job.device == "cpu":
        yield_to_serving()
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
    start = fetch(job.start.uri, job.start.rank, job.start.sha256) if job.start else None
    model, fresh_adapter = policy(job, model_path, start)
    trainer = RowTrainer(
        job,
        batches,
        model=model,
        # TRL looks at one row to tell text from images; the rows themselves come from `batches`.
        train_dataset=Dataset.from_dict({"prompt_ids": [[0]], "completion_ids": [[0]], "label": [True]}),
        processing_class=tokenizer,
        peft_config=fresh_adapter,
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


def policy(job: TrainJob, model_path: str, start: str | None) -> tuple[str | PeftModel, LoraConfig | None]:
    """What TRL's trainer takes as model and peft_config: the base model and the shape of a fresh adapter, or the model
    with the adapter in folder `start`, of which TRL then keeps a frozen copy, "ref", as the reference.

    Raises:
        ValueError: the adapter has another shape than kto.rank and kto.target_modules.
    """
    wanted = lora_config(job)
    if start is None:
        return model_path, wanted
    base = AutoModelForCausalLM.from_pretrained(model_path, revision=job.model.revision, dtype=job.dtype)
    model = PeftModel.from_pretrained(base, start, is_trainable=True)
    found = model.peft_config["default"]
    if (found.r, set(found.target_modules)) != (wanted.r, set(wanted.target_modules)):
        raise ValueError(
            f"kto.reference is champion, whose adapter has rank {found.r} on {sorted(found.target_modules)}, but "
            f"kto.rank is {wanted.r} and kto.target_modules {sorted(wanted.target_modules)}: an adapter keeps its "
            "shape when it is trained further; set these back, or kto.reference: base"
        )
    return model, None


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


class RowTrainer(KTOTrainer):  # type: ignore[misc]  # TRL is not typed
    """TRL's trainer on rows that are already tokenized and paired, logging throughput and stopping at a NaN."""

    def __init__(self, job: TrainJob, batches: RowBatches, **trl_arguments: Any) -> None:
        super().__init__(**trl_arguments)  # makes the frozen copy "ref" where the model came with an adapter
        self.job = job
        self.batches = batches
        self.failure: str | None = None
        self._tokens_logged = 0
        self._logged_at = 0.0
        self.exact = job.step == "exact"
        if self.exact:
            base = self.model.get_base_model()
            attach(base)
            folder = join(job.references_uri, fingerprint(base, job.dtype, torch.get_num_threads()))
            self.references = ReferenceCache(folder, f"{job.run}-{self.args.process_index}")

    def _prepare_dataset(self, dataset: Dataset, *unused: object) -> Dataset:
        return dataset

    def get_train_dataloader(self) -> DataLoader[list[dict[str, Any]]]:
        # Not prepared by accelerate, which would deal the rows out among the workers a second time.
        self._logged_at = time.perf_counter()
        rows_to_batch = partial(collate, with_kl=self.calculate_KL) if self.exact else self.data_collator
        return DataLoader(self.batches, batch_size=None, collate_fn=rows_to_batch)

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool = False) -> Tensor:
        """The exact KTO step; with several workers the KL term is the mean over theirs, as in TRL."""
        if not self.exact:
            loss: Tensor = super()._compute_loss(model, inputs, return_outputs)
            return loss
        key, label = inputs.pop("key"), inputs.pop("label")
        reference, kl_reference = self.references.get(key, lambda: self._reference(model, inputs))
        logps, kl_logps = model(**inputs)
        kl = logps.new_zeros(())
        if kl_logps is not None:
            assert kl_reference is not None, "scored with the same KL completions"
            kl = (kl_logps - kl_reference.to(logps.device)).mean()
            kl = self.accelerator.gather(kl).mean().clamp(min=0)
        terms = self.loss_terms(logps, reference.to(logps.device), kl, label)
        self._note(kl, terms.rewards, label, inputs["length"])
        return terms.loss

    def loss_terms(self, logps: Tensor, reference: Tensor, kl: Tensor, label: Tensor) -> LossTerms:
        return kto_loss(logps, reference, kl, label, self.beta, (self.desirable_weight, self.undesirable_weight))

    def _reference(self, model: torch.nn.Module, inputs: dict[str, Any]) -> Scores:
        """The same scores under the reference: the adapter switched off, or the champion's frozen copy in its place."""
        unwrapped = self.accelerator.unwrap_model(model)
        frozen = "ref" if "ref" in unwrapped.peft_config else None
        with torch.no_grad(), use_adapter(unwrapped, frozen), self.accelerator.autocast():
            scores: Scores = unwrapped(**inputs)
        return scores

    def _note(self, kl: Tensor, rewards: Tensor, label: Tensor, length: Tensor) -> None:
        """What TRL's log averages over a step, under TRL's names; sums over all workers."""
        good, bad = label, ~label
        sums = torch.stack([rewards[good].sum(), good.sum(), rewards[bad].sum(), bad.sum(), length.sum()])
        of_good, n_good, of_bad, n_bad, tokens = self.accelerator.gather(sums[None]).sum(0).tolist()
        metrics = self._metrics["train"]
        metrics["kl"].append(kl.item())
        if n_good:
            metrics["rewards/chosen"].append(of_good / n_good)
        if n_bad:
            metrics["rewards/rejected"].append(of_bad / n_bad)
        if n_good and n_bad:
            metrics["rewards/margins"].append(of_good / n_good - of_bad / n_bad)
        self._total_train_tokens += int(tokens)

    def _save_checkpoint(self, model: torch.nn.Module, trial: object) -> None:
        if self.exact:
            self.references.save()
        super()._save_checkpoint(model, trial)

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
