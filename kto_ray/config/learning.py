"""From feedback to an adapter: the snapshot, KTO and its training."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from kto_ray.config.base import Section, Share

MAX_ALPHA = 65_536  # far above any that trains, and far below what makes numbers overflow


class DataSection(Section):
    holdout_share: Annotated[float, Field(gt=0, lt=1)] = 0.2  # of users, by salted hash
    # Held-out users judge the gate by what they said in the days before the newest feedback; what they said earlier is
    # in neither split, for a user is on one side for good. None: whatever they ever said
    holdout_days: float | None = Field(90.0, gt=0)
    max_user_share: Annotated[float, Field(gt=0, le=1)] = 0.05  # of a snapshot's rows that one user may fill
    # Jaccard similarity of word shingles from which two rows are one, the newer; 1: only equal rows are
    near_duplicate: Annotated[float, Field(ge=0.5, le=1)] = 0.9
    max_rows: int = Field(100_000, ge=8)  # replay window: the newest, and
    older_share: Annotated[float, Field(ge=0, lt=1)] = 0.2  # of a full window, drawn evenly from all that is older
    max_length: int = Field(512, ge=16)  # tokens, prompt and completion
    # Of a model that thinks before it answers: it was judged, and trains; or it is context for the answer that does
    reasoning: Literal["train", "context"] = "train"
    rows_per_shard: int = Field(20_000, ge=1)
    rows_per_range: int = Field(10_000, ge=1)  # feedback events of a key range of the store, which a task reads at once
    seed: int = 0


class KtoSection(Section):
    """The learning rules; see the README's table for where the defaults come from."""

    beta: float = Field(0.3, gt=0)  # the pull to the reference: higher stays closer
    loss_aversion: float = Field(1.0, gt=0)  # 1/r: how much the undesirable mass counts against the desirable mass
    loss_type: Literal["kto", "apo_zero_unpaired"] = "kto"
    # What a policy starts from and is held to: the base model, so that no round's errors reach the next; or the
    # champion, so that rounds add up, within gate.max_kl_base in all
    reference: Literal["base", "champion"] = "base"
    learning_rate: float = Field(5e-4, gt=0)
    epochs: int = Field(1, ge=1)
    micro_batch: int = Field(8, ge=4)  # rows of a step on one worker; the KL pairs are rotated within it
    accumulate: int = Field(1, ge=1)  # micro-batches of an optimizer step on one worker
    warmup_share: Share = 0.1
    # Against explosions only. At 1.0, the usual value, steps that hold rows of a rare class are cut to the size of the
    # others, and the weights that make up for its rarity come to nothing.
    max_grad_norm: float = Field(100.0, gt=0)
    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1, le=MAX_ALPHA)
    dropout: float = Field(0.0, ge=0, lt=1)
    rslora: bool = False  # scale the adapter by alpha / sqrt(rank) instead of alpha / rank
    dora: bool = False  # learn magnitudes too; vLLM serves no such adapter, so only with loop.enabled: false
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

    @model_validator(mode="after")
    def _no_lm_head(self) -> KtoSection:
        if "lm_head" in self.target_modules:
            raise ValueError("target_modules holds 'lm_head', whose adapter KTO's fused head never trains; remove it")
        return self


class CandidateSection(KtoSection):
    """What one of several candidates of a round is trained with, over the `kto` section: what is set here counts."""

    @model_validator(mode="after")
    def _of_one_snapshot(self) -> CandidateSection:
        for name in ("micro_batch", "loss_aversion"):
            if name in self.model_fields_set:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, but it is sealed into the snapshot, which all candidates share; "
                    f"set kto.{name} for all of them"
                )
        return self

    @model_serializer(mode="wrap")
    def _what_is_set(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in whole(self).items() if name in self.model_fields_set}


class TrainSection(Section):
    workers: int = Field(1, ge=1)
    device: Literal["cpu", "gpu"] = "cpu"
    micro_batches: int = Field(1, ge=1)  # that a worker takes in one forward; the KL estimate is over all of them
    cpus_per_worker: int = Field(1, ge=1)
    gpus_per_worker: float = Field(1.0, gt=0, le=1)  # on device gpu; below 1 the worker shares the GPU
    threads: int = Field(2, ge=1)  # OpenMP threads of a CPU worker
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"  # auto: as the model is served
    checkpoint_steps: int = Field(10, ge=1)
    max_failures: int = Field(3, ge=0)  # worker failures that Ray Train restarts from the last checkpoint
    gradient_checkpointing: bool = False
    step: Literal["exact", "trl"] = "exact"  # ours, or TRL's own, which is slower and knows every model
    quantize: Literal["none", "nf4"] = "none"  # nf4: QLoRA, the frozen base in 4 bits (bitsandbytes)
    sharding: Literal["none", "fsdp"] = "none"  # fsdp: FSDP2, each worker holds its part of the base
    mlflow_uri: str | None = None  # an MLflow tracking server, or sqlite:///file; needs the extra `mlflow`

    @model_validator(mode="after")
    def _can_work(self) -> TrainSection:
        if self.sharding == "fsdp" and self.workers == 1:
            raise ValueError(
                "sharding is 'fsdp', but workers is 1: there is nobody to share the base with; "
                "set train.workers to the number of GPUs or train.sharding: none"
            )
        if self.sharding == "fsdp" and self.quantize != "none":
            raise ValueError(
                f"sharding is 'fsdp' and quantize is {self.quantize!r}: packed 4-bit weights are not sharded; use one"
            )
        if self.sharding == "fsdp" and self.step == "trl":
            raise ValueError(
                "sharding is 'fsdp' and step is 'trl': only the exact step is proved over a shared base; "
                "set train.step: exact or train.sharding: none"
            )
        if self.device == "gpu" and self.workers > 1 and self.gpus_per_worker < 1:
            raise ValueError(
                f"gpus_per_worker is {self.gpus_per_worker} with {self.workers} workers: NCCL refuses two workers on "
                "one GPU; set train.gpus_per_worker: 1 or train.workers: 1"
            )
        return self
