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
from dataclasses import asdict, replace
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
from torch.distributed.fsdp import register_fsdp_forward_method
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PrinterCallback
from transformers.distributed import DistributedConfig
from trl import KTOConfig, KTOTrainer
from trl.trainer.utils import use_adapter

from kto_ray.adapter import fetch
from kto_ray.environment import yield_to_serving
from kto_ray.model import resolve_model
from kto_ray.paths import join, write_atomic
from kto_ray.processor import precision
from kto_ray.train import attention
from kto_ray.train.batches import RowBatches, collate
from kto_ray.train.lora import fuse
from kto_ray.train.records import StepRecord, TrainJob, TrainOutcome, TrainProgress
from kto_ray.train.reference import ReferenceCache, Scores, fingerprint
from kto_ray.train.step import LossTerms, attach, kto_loss
from kto_ray.train.track import append_step, write_steps


def train_on_worker(job: TrainJob, stream: DataIterator) -> TrainOutcome:
    """Train one adapter, going on from the run's last checkpoint when there is one.

    `stream` yields all training rows in the snapshot's order, again in every epoch.

    Raises:
        RuntimeError: the stream ends before the rows that the snapshot promises.
        ValueError: the adapter to start from is damaged, or of another shape than kto.rank and kto.target_modules.
    """
    context = ray.train.get_context()
    job = replace(job, dtype=precision(job.device, job.dtype).dtype)
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
        args=kto_arguments(job, str(scratch), steps, context.get_world_size()),
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
    return TrainOutcome(history=trainer.history(), dtype=job.dtype, failure=trainer.failure)


def policy(job: TrainJob, model_path: str, start: str | None) -> tuple[str | PeftModel, LoraConfig | None]:
    """What TRL's trainer takes as model and peft_config: the base model and the shape of a fresh adapter, or the model
    with the adapter in folder `start`, of which TRL then keeps a frozen copy, "ref", as the reference.

    Raises:
        ValueError: the adapter has another shape than kto.rank and kto.target_modules.
    """
    wanted = lora_config(job)
    if start is None:
        return model_path, wanted
    how = {"dtype": job.dtype, "revision": job.model.revision, **attention_of(job)}
    base = AutoModelForCausalLM.from_pretrained(model_path, **how)
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
        use_rslora=job.kto.rslora,
        use_dora=job.kto.dora,
        target_modules=list(job.kto.target_modules),
        bias="none",
        task_type="CAUSAL_LM",
    )


def _loading(job: TrainJob, workers: int) -> dict[str, Any]:
    """How the base model is loaded. Sharded, a worker reads only its part, so no worker ever holds all of the base."""
    how: dict[str, Any] = {"dtype": job.dtype, "revision": job.model.revision}
    how |= attention_of(job)
    if job.quantize == "nf4":
        how["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, job.dtype),
        )
    if job.sharding == "fsdp":
        how["distributed_config"] = DistributedConfig(fsdp_size=workers)
        how["device_map"] = None  # TRL's default would put the whole base on one GPU
    return how


def attention_of(job: TrainJob) -> dict[str, str]:
    """Ours on a CPU, where it was measured to be faster than torch's own in fp32 (up to 1.4 times) and in native bf16
    (2 times); where bf16 is emulated torch's is, and elsewhere transformers takes what it likes."""
    ours = (job.step, job.device) == ("exact", "cpu") and not precision("cpu", job.dtype).emulated
    return {"attn_implementation": attention.register()} if ours else {}


def kto_arguments(job: TrainJob, output_dir: str, steps: int, workers: int = 1) -> KTOConfig:
    """TRL's settings. `steps` is the number of optimizer steps of the whole run, which the learning rate follows."""
    return KTOConfig(
        output_dir=output_dir,
        model_init_kwargs=_loading(job, workers),
        use_cpu=job.device == "cpu",
        bf16=job.dtype == "bfloat16",
        fp16=job.dtype == "float16",
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
        sharded = job.sharding == "fsdp"
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
        self.exact = job.step == "exact"
        base = self.model.get_base_model()
        if self.exact:
            attach(base)
            fuse(self.model)
            folder = join(job.references_uri, fingerprint(base, job.dtype, torch.get_num_threads()))
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
        if first:
            self._track(record)
        if not (math.isfinite(record.loss) and math.isfinite(record.grad_norm)):
            self._fail(record)
        elif first:  # never a NaN: it would not be JSON
            self._write_progress(record)

    def _track(self, record: StepRecord) -> None:
        """Add the step to the run's file. The first time, all steps: those of before a restart are in the history."""
        if self._tracks:
            append_step(self.job.metrics_uri, record)
        else:
            write_steps(self.job.metrics_uri, self.history())
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
        write_atomic(self.job.progress_uri, json.dumps(asdict(progress)).encode())

    def history(self) -> tuple[StepRecord, ...]:
        """A record a step, those before a restart included: the trainer's state travels in the checkpoint."""
        return tuple(step_record(entry) for entry in self.state.log_history if "loss" in entry)
