"""TRL's trainer around our rows: the exact step, its figures, checkpoints that a kill cannot tear."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.distributed.fsdp import register_fsdp_forward_method
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from trl import KTOTrainer
from trl.trainer.utils import use_adapter

from kto_ray.paths import Paths, join, write_atomic
from kto_ray.records.training import (
    StepRecord,
    TrainJob,
    TrainProgress,
)
from kto_ray.train.batches import RowBatches, collate
from kto_ray.train.lora import fuse
from kto_ray.train.reference import ReferenceCache, Scores, fingerprint
from kto_ray.train.step import LossTerms, attach, kto_loss
from kto_ray.train.track import append_step, write_steps

logger = logging.getLogger(__name__)


def step_record(entry: dict[str, Any]) -> StepRecord:
    """A step as TRL logged it."""
    return StepRecord(
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
        at=entry["at"],
    )


class RowTrainer(KTOTrainer):  # type: ignore[misc]  # TRL is not typed
    """TRL's trainer on rows that are already tokenized and paired, logging throughput and stopping at a NaN."""

    def __init__(self, job: TrainJob, batches: RowBatches, **trl_arguments: Any) -> None:
        sharded = job.train.sharding == "fsdp"
        # transformers saves no optimizer state of a model that is sharded as it is loaded, for it would need gathering.
        # Ours needs none: what is trained is the adapter, which PEFT adds whole on every worker.
        trl_arguments["args"].save_only_model = sharded
        super().__init__(**trl_arguments)  # makes the frozen copy "ref" where the model came with an adapter
        self.args.save_only_model = False
        self.sharded = sharded
        self.job = job
        self.batches = batches
        self.failure: str | None = None
        self._tokens_logged = 0
        self._logged_at = 0.0
        self._tracks = False
        self.exact = job.train.step == "exact"
        base = self.model.get_base_model()
        if self.exact:
            attach(base)
            fuse(self.model)
            folder = join(Paths(job.home).references(), fingerprint(base, job.dtype, torch.get_num_threads()))
            self.references = ReferenceCache(folder, f"{job.run}-{self.args.process_index}")
        # PEFT calls `forward` itself, past the hooks by which FSDP gathers what belongs to the model as a whole.
        register_fsdp_forward_method(base, "forward")

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
        if self.sharded:
            # A forward gathers the base from all workers, so they compute a reference together or not at all.
            missing = torch.tensor([not self.references.has(key)], device=label.device)
            if self.accelerator.gather(missing).any():
                self.references.forget(key)
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

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if self.sharded:  # PEFT would gather the base first, but only this worker saves: it would wait for the others
            state_dict = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        super()._save(output_dir, state_dict)

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
            logs["at"] = time.time()
            self._tokens_logged, self._logged_at = self._total_train_tokens, now
        super().log(logs, start_time)
        if not is_step:
            return
        record = step_record(self.state.log_history[-1])
        first = self.args.process_index == 0
        failed = not (math.isfinite(record.loss) and math.isfinite(record.grad_norm))
        if first:
            self._show(record, failed)
        if failed:
            self._fail(record)

    def _show(self, record: StepRecord, failed: bool) -> None:
        """Who looks on may miss a step while the storage is away; the next one writes it too."""
        try:
            self._track(record)
            if not failed:  # never a NaN: it would not be JSON
                self._write_progress(record)
        except OSError as error:
            self._tracks = False
            logger.warning("step %d of %s is not shown yet: %s", record.step, self.job.run, error)

    def _track(self, record: StepRecord) -> None:
        """Add the step to the run's file. The first time, all steps: those of before a restart are in the history."""
        if self._tracks:
            append_step(Paths(self.job.home).run_metrics(self.job.run), record)
        else:
            write_steps(Paths(self.job.home).run_metrics(self.job.run), self.history())
        self._tracks = True

    def _rows_used(self) -> int:
        """Rows of all workers that the run has used, this step's included."""
        epoch_steps = math.ceil(len(self.batches) / self.job.kto.accumulate)
        epochs, step = divmod(self.state.global_step, epoch_steps)
        in_epoch = min(step * self.job.kto.accumulate * self.batches.group, self.batches.rows)
        return int(epochs * self.batches.rows + in_epoch)

    def _fail(self, record: StepRecord) -> None:
        # Stop rather than raise: Ray Train would restart a worker that raises, and the same rows end the same way. The
        # loss is averaged over the workers, so all of them stop at this step; nothing of it is saved.
        self.failure = (
            f"training diverged at step {record.step} of {self.state.max_steps}: loss {record.loss}, gradient norm "
            f"{record.grad_norm}, learning rate {record.learning_rate:.2g}, after {record.rows} rows; "
            "lower kto.learning_rate, or look at those rows"
        )
        self.control.should_training_stop = True
        self.control.should_save = False

    def _write_progress(self, record: StepRecord) -> None:
        progress = TrainProgress(
            step=record.step,
            steps=self.state.max_steps,
            loss=record.loss,
            kl=record.kl,
            margin=record.margin,
            tokens_per_s=record.tokens_per_s,
            train_s=sum(entry["seconds"] for entry in self.state.log_history if "loss" in entry),
            pid=os.getpid(),
            at=record.at,
        )
        write_atomic(Paths(self.job.home).run_progress(self.job.run), json.dumps(asdict(progress)).encode())

    def history(self) -> tuple[StepRecord, ...]:
        """A record a step, those before a restart included: the trainer's state travels in the checkpoint."""
        return tuple(step_record(entry) for entry in self.state.log_history if "loss" in entry)
