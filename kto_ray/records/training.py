"""What the training job, its workers and its callers exchange. No torch, no ray: the controller imports this."""

from __future__ import annotations

from dataclasses import dataclass, field

from kto_ray.config.learning import KtoSection, TrainSection
from kto_ray.config.serving import ModelSection
from kto_ray.records.adapters import AdapterVersion
from kto_ray.records.completions import Json


class TrainingFailed(RuntimeError):
    """The workers failed more often than train.max_failures: the message says of what, and what to do."""


class TrainingDiverged(RuntimeError):
    """The loss or its gradient stopped being a number: the message says at which step, on which rows."""


@dataclass(frozen=True, slots=True)
class TrainJob:
    """All that a worker needs beside its stream of rows. Weights, order and batch were sealed with the snapshot."""

    model: ModelSection  # found by the worker: another machine, another cache
    kto: KtoSection
    train: TrainSection
    dtype: str  # "auto": the worker decides
    rows: int
    micro_batch: int  # rows a worker takes at a time: one sealed micro-batch or several
    desirable_weight: float
    undesirable_weight: float
    max_length: int
    seed: int
    home: str
    run: str
    start: AdapterVersion | None = None  # policy and reference start from it; None: from the base model
    signing_keys: tuple[str, ...] = field(default=(), repr=False)  # of adapters.signing_keys: who may have signed it


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One optimizer step. Rewards are beta * (log pi - log ref), means over the class; None if it held none of it.

    `rows` counts all the rows that the run had used when the step ended, every epoch's.
    """

    step: int
    rows: int
    loss: float
    kl: float
    reward_desirable: float | None
    reward_undesirable: float | None
    margin: float | None
    grad_norm: float
    learning_rate: float
    tokens: int  # real ones, prompt and completion, without padding and without the KL pairs
    seconds: float
    tokens_per_s: float
    at: float  # seconds since the epoch, when the step ended


@dataclass(frozen=True, slots=True)
class TrainOutcome:
    """What the first worker returns. `failure` says why the run diverged, None if it did not."""

    history: tuple[StepRecord, ...]
    dtype: str  # that it computed in
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class TrainProgress:
    """Where a running training stands, for status displays."""

    step: int
    steps: int
    loss: float
    kl: float
    margin: float | None
    tokens_per_s: float
    train_s: float  # in steps and checkpoints so far
    pid: int  # of the first worker
    at: float  # seconds since the epoch


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A finished training. The `last` figures and the rewards are means over the last quarter of the steps.

    `train_s` is the time spent in steps and checkpoints, restarts not counted; `tokens_per_s` is over that time.
    """

    adapter_dir: str  # URI that holds adapter_config.json and adapter_model.safetensors beside trainer state
    loss_first: float
    loss_last: float
    kl_last: float
    rewards_desirable: float
    rewards_undesirable: float
    tokens_per_s: float
    train_s: float
    steps: int
    history: tuple[StepRecord, ...]
    dtype: str  # that it computed in


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained and published adapter, the record of each step, and the run's other figures (`TrainResult`)."""

    version: AdapterVersion
    history: tuple[Json, ...]
    figures: Json
