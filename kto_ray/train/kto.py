"""KTO on one Ray Train worker: TRL's KTOTrainer with a LoRA adapter, fed by Ray Data.

The reference is the base model, that is the same weights with the adapter disabled (KTO, arXiv:2402.01306, eq. 7-8), or
a frozen copy of the champion that the policy starts from (`kto.reference`).
TRL keeps the loop, the optimizer and the checkpoints. Rows come tokenized and paired from the snapshot, and the step is
ours (`step`), with the reference's log-probabilities cached (`reference`); `train.step: trl` takes TRL's own.
"""

from __future__ import annotations

import math
import os
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray.train
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from ray.data import DataIterator
from ray.train.huggingface.transformers import RayTrainReportCallback
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PrinterCallback
from transformers.distributed import DistributedConfig
from trl import KTOConfig

from kto_ray.adapters.files import fetched
from kto_ray.cluster import yield_to_serving
from kto_ray.model import resolve_model
from kto_ray.processor import precision
from kto_ray.records.training import (
    TrainJob,
    TrainOutcome,
)
from kto_ray.train import attention
from kto_ray.train.batches import RowBatches
from kto_ray.train.trainer import RowTrainer


def train_on_worker(job: TrainJob, stream: DataIterator) -> TrainOutcome:
    """Train one adapter, going on from the run's last checkpoint when there is one.

    `stream` yields all training rows in the snapshot's order, again in every epoch.

    Raises:
        RuntimeError: the stream ends before the rows that the snapshot promises.
        ValueError: the adapter to start from is damaged, or of another shape than kto.rank and kto.target_modules.
    """
    context = ray.train.get_context()
    job = replace(job, dtype=precision(job.train.device, job.dtype).dtype)
    if job.train.device == "cpu":
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
    with fetched(job.start, job.start.rank, job.signing_keys) if job.start else nullcontext() as start:
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
    if job.train.quantize == "nf4":
        how["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, job.dtype),
        )
    if job.train.sharding == "fsdp":
        how["distributed_config"] = DistributedConfig(fsdp_size=workers)
        how["device_map"] = None  # TRL's default would put the whole base on one GPU
    return how


def attention_of(job: TrainJob) -> dict[str, str]:
    """Ours on a CPU, where it was measured to be faster than torch's own in fp32 (up to 1.4 times) and in native bf16
    (2 times); where bf16 is emulated torch's is, and elsewhere transformers takes what it likes."""
    ours = (job.train.step, job.train.device) == ("exact", "cpu") and not precision("cpu", job.dtype).emulated
    return {"attn_implementation": attention.register()} if ours else {}


def kto_arguments(job: TrainJob, output_dir: str, steps: int, workers: int = 1) -> KTOConfig:
    """TRL's settings. `steps` is the number of optimizer steps of the whole run, which the learning rate follows."""
    return KTOConfig(
        output_dir=output_dir,
        model_init_kwargs=_loading(job, workers),
        use_cpu=job.train.device == "cpu",
        bf16=job.dtype == "bfloat16",
        fp16=job.dtype == "float16",
        gradient_checkpointing=job.train.gradient_checkpointing,
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
        save_steps=job.train.checkpoint_steps,
        save_total_limit=1,
        ddp_find_unused_parameters=False,
        report_to="none",
        disable_tqdm=True,
    )
