"""One configuration tree. Every field has a default that suits the embedded, two-core machine; the files in configs/
hold only differences. Nothing here imports torch, ray or vllm: a wrong config is told before anything heavy starts."""

from __future__ import annotations

import difflib
import importlib.util
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

EMBEDDED_MODEL = "smollm2-135m-instruct"

Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSection(Section):
    """The base model that is served and trained."""

    id: str = EMBEDDED_MODEL  # the embedded model, a Hugging Face id, or a local directory
    revision: str | None = None
    served_name: str = Field("policy", pattern=r"^[a-z0-9][a-z0-9._-]*$")
    # auto: what the serving machine computes natively (`kto-ray doctor` says what and why); training and gate follow
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    max_model_len: int = Field(1024, ge=64)  # tokens, prompt and answer together


class RaySection(Section):
    address: str | None = None  # None starts a local cluster on loopback; "auto" joins the running one
    num_cpus: int = Field(6, ge=2)  # logical CPUs of the local cluster: what may run at once, not threads
    object_store_mb: int = Field(512, ge=80)
    # Node label whose values "serve" and "train" name the node pools; None: one pool for everything
    pool_label: str | None = Field(None, pattern=r"^[a-z0-9]([a-z0-9./-]*[a-z0-9])?$")


class HttpSection(Section):
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    behind_proxy: bool = False  # required to listen beyond loopback: an authenticating proxy stands in front

    @model_validator(mode="after")
    def _loopback_without_keys(self) -> HttpSection:
        if self.host not in ("127.0.0.1", "::1", "localhost") and not self.behind_proxy:
            raise ValueError(
                f"host is {self.host!r}, but there are no API keys; use 127.0.0.1, "
                "or set http.behind_proxy: true where an authenticating proxy stands in front"
            )
        return self


class ServeSection(Section):
    """The vLLM policy replicas and the gateway in front of them."""

    device: Literal["cpu", "gpu"] = "cpu"
    replicas: int = Field(1, ge=1)
    gateways: int = Field(1, ge=1)
    tensor_parallel_size: int = Field(1, ge=1)
    gpus_per_worker: float = Field(1.0, gt=0, le=1)  # of an engine worker on device gpu; below 1 it shares the GPU
    threads: int = Field(2, ge=1)  # OpenMP threads of a CPU replica
    kv_cache_gb: float = Field(1.0, gt=0)  # of a CPU replica
    max_num_seqs: int = Field(32, ge=1)
    max_loras: int = Field(4, ge=4)  # champion, challenger, previous and one slot more, so none is evicted
    max_lora_rank: Literal[1, 8, 16, 32, 64, 128, 256, 320, 512] = 16  # those that vLLM takes
    max_output_tokens: int = Field(256, ge=1)  # when the client names no limit
    reconcile_s: float = Field(1.0, gt=0)
    heartbeat_timeout_s: float = Field(15.0, gt=0)  # a replica silent for longer is not counted as live
    drain_s: float = Field(2.0, ge=0)  # an unwanted adapter stays this long after its last request
    engine: dict[str, Any] = Field(default_factory=dict)  # more vLLM engine arguments


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
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    rslora: bool = False  # scale the adapter by alpha / sqrt(rank) instead of alpha / rank
    dora: bool = False  # learn magnitudes too; vLLM serves no such adapter, so only with loop.enabled: false
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

    @model_validator(mode="after")
    def _no_lm_head(self) -> KtoSection:
        if "lm_head" in self.target_modules:
            raise ValueError("target_modules holds 'lm_head', whose adapter KTO's fused head never trains; remove it")
        return self


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
        if self.quantize == "nf4" and importlib.util.find_spec("bitsandbytes") is None:
            raise ValueError(
                "quantize is 'nf4', but the package bitsandbytes is not installed; pip install 'kto-ray[qlora]' (it is "
                "part of 'kto-ray[gpu]'), or set train.quantize: none"
            )
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
        if self.mlflow_uri is not None and importlib.util.find_spec("mlflow") is None:
            raise ValueError(
                f"mlflow_uri is {self.mlflow_uri!r}, but the package mlflow is not installed; "
                "pip install 'kto-ray[mlflow]', or leave train.mlflow_uri out"
            )
        return self


class GateSection(Section):
    """Thresholds that a candidate must keep; the README says where each comes from."""

    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.8  # of the bootstrap intervals, two-sided: one in ten lucky
    bootstrap: int = Field(2000, ge=200)
    min_holdout: int = Field(20, ge=2)  # held-out rows, of both classes together
    min_holdout_users: int = Field(5, ge=2)  # whose rows these are: the bootstrap resamples users
    max_holdout: int = Field(1000, ge=20)  # rows that are scored; a fixed random subset of more
    min_auc: Share = 0.5  # the interval's lower end must lie above it
    max_kl_base: float = Field(0.75, gt=0)  # nats per token on the candidate's own guard answers
    max_kl_champion: float = Field(1.0, gt=0)
    min_length_ratio: float = Field(0.15, ge=0)  # candidate's mean answer length over the champion's
    max_length_ratio: float = Field(3.0, gt=0)
    max_base_nll_rise: float = Field(0.75, gt=0)  # nats per token: how much odder base finds its answers
    max_repetition: Share = 0.25  # rise of the share of guard answers that repeat themselves over the champion's
    max_empty: Share = 0.05
    max_truncated_rise: Share = 0.25  # rise of the truncated share over the champion's
    guard_max_tokens: int = Field(64, ge=8)


class RolloutStage(Section):
    name: str
    weight: Annotated[float, Field(gt=0, lt=1)]  # the challenger's share of users
    decides: bool = False  # only a deciding stage may promote; the others only watch for harm
    min_users: int = Field(10, ge=1)  # judged users of the challenger before the stage may end


class RolloutSection(Section):
    stages: tuple[RolloutStage, ...] = (
        RolloutStage(name="canary", weight=0.1, min_users=5),
        RolloutStage(name="ab", weight=0.5, decides=True, min_users=20),
    )
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05  # chance that the sequence ever excludes the truth
    min_effect: Annotated[float, Field(ge=0, lt=1)] = 0.0  # the difference that the lower bound must exceed
    max_users: int = Field(2000, ge=20)  # judged users of both arms; without a decision by then the challenger ends
    max_hours: float = Field(72.0, gt=0)

    @model_validator(mode="after")
    def _last_stage_decides(self) -> RolloutSection:
        if not self.stages or [s.decides for s in self.stages] != [False] * (len(self.stages) - 1) + [True]:
            raise ValueError("stages must end in exactly one stage with decides: true")
        weights = [s.weight for s in self.stages]
        if weights != sorted(weights):
            raise ValueError(f"stages must not lower the challenger's weight, got {weights}: a user would switch arms")
        return self


class LoopSection(Section):
    enabled: bool = True
    min_labels: int = Field(200, ge=8)  # new labels that start a round
    every_min: float | None = Field(None, gt=0)  # or this many minutes, when there is at least one new label
    tick_s: float = Field(1.0, gt=0)
    max_attempts: int = Field(3, ge=1)  # of one stage of a round
    max_rounds: int | None = Field(None, ge=1)  # rounds that start by themselves; None for ever


class Config(Section):
    home: str = Field("runs/local", validate_default=True)  # artifacts: a directory or s3://bucket/prefix
    store_url: str | None = None  # SQLAlchemy URL; None is SQLite in home
    embedded: bool = True  # one machine: loopback Ray, SQLite allowed
    salt: str = Field("kto-ray", min_length=1)  # of user hashes; set a secret one in production
    model: ModelSection = ModelSection()
    ray: RaySection = RaySection()
    http: HttpSection = HttpSection()
    serve: ServeSection = ServeSection()
    data: DataSection = DataSection()
    kto: KtoSection = KtoSection()
    train: TrainSection = TrainSection()
    gate: GateSection = GateSection()
    rollout: RolloutSection = RolloutSection()
    loop: LoopSection = LoopSection()

    @field_validator("home")
    @classmethod
    def _absolute(cls, home: str) -> str:
        """Workers run in directories of their own, so a local home must not depend on where they stand."""
        return home if "://" in home else str(Path(home).expanduser().absolute())

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        if self.kto.rank > self.serve.max_lora_rank:
            raise ValueError(
                f"kto.rank is {self.kto.rank}, but serve.max_lora_rank is {self.serve.max_lora_rank}: "
                "the replicas could not load the adapter; raise serve.max_lora_rank"
            )
        if self.kto.dora and self.loop.enabled:
            raise ValueError(
                "kto.dora is true and loop.enabled is true: vLLM cannot serve a DoRA adapter, so every round would "
                "fail; set kto.dora: false, or loop.enabled: false to train and evaluate by hand"
            )
        if self.kto.dora and self.train.sharding == "fsdp":
            raise ValueError(
                "kto.dora is true and train.sharding is 'fsdp': DoRA needs the norms of whole base weights; "
                "set kto.dora: false (kto.rslora works) or train.sharding: none"
            )
        if self.kto.reference == "champion" and (self.train.quantize, self.train.sharding) != ("none", "none"):
            raise ValueError(
                f"kto.reference is 'champion', but train.quantize is {self.train.quantize!r} and train.sharding "
                f"{self.train.sharding!r}: a champion is loaded onto a whole, unquantized base; set both to none, "
                "or kto.reference: base"
            )
        if self.train.device == "cpu" and self.train_dtype == "float16":
            raise ValueError(
                f"train.device is 'cpu', but train.dtype is {self.train.dtype!r} and model.dtype {self.model.dtype!r}: "
                "float16 is trained on GPUs only; set train.dtype: float32, or both to auto"
            )
        if self.data.max_length > self.model.max_model_len:
            raise ValueError(
                f"data.max_length is {self.data.max_length}, above model.max_model_len "
                f"{self.model.max_model_len}; lower it"
            )
        if self.store_url is None and "://" in self.home:
            raise ValueError(
                f"home is {self.home!r} and store_url is not set: the store cannot be a file there; "
                "set store_url to a postgresql+psycopg:// URL, or to sqlite:///FILE on one machine"
            )
        if not self.embedded and self.database_url.startswith("sqlite"):
            raise ValueError(
                f"store_url is {self.database_url!r}: SQLite serves one machine; "
                "set a postgresql+psycopg:// URL or embedded: true"
            )
        if not self.embedded and "://" not in self.home:
            raise ValueError(
                f"home is {self.home!r}, a local directory; beyond one machine it must be a URI such as s3://bucket/kto"
            )
        return self

    @property
    def train_dtype(self) -> str:
        """Training's precision; "auto" where the machine decides."""
        return self.model.dtype if self.train.dtype == "auto" else self.train.dtype

    def with_dtype(self, dtype: str) -> Config:
        """The same with `dtype` where the precision is "auto": the machine has decided."""
        model = self.model.model_copy(update={"dtype": dtype}) if self.model.dtype == "auto" else self.model
        train = self.train if self.train.dtype != "auto" else self.train.model_copy(update={"dtype": model.dtype})
        return self.model_copy(update={"model": model, "train": train})

    @property
    def database_url(self) -> str:
        if self.store_url is not None:
            return self.store_url
        return f"sqlite:///{self.home}/kto.db"

    def pool(self, name: Literal["serve", "train"]) -> dict[str, str]:
        """Ray's label selector of a node pool; empty where every node is for everything."""
        return {} if self.ray.pool_label is None else {self.ray.pool_label: name}

    @property
    def base_name(self) -> str:
        """The served name of the base model without an adapter."""
        return f"{self.model.served_name}@base"


class ConfigError(ValueError):
    """A config that names the field, the value, what is allowed and the fix."""


def load_config(path: str | Path | None = None, overrides: tuple[str, ...] = ()) -> Config:
    """Read a YAML file (or the defaults), apply the environment, then `a.b=c` overrides, and validate.

    An environment variable `KTO_RAY__A__B=c` sets a.b to the text c, so that secrets reach a pod without being in a
    file; pydantic turns it into a number or a truth value where the field is one.

    Raises:
        ConfigError: the file is missing or not YAML, a field is unknown, or a value is not allowed.
    """
    tree: dict[str, Any] = {}
    if path is not None:
        try:
            tree = yaml.safe_load(Path(path).read_text()) or {}
        except FileNotFoundError:
            raise ConfigError(f"config file {str(path)!r} does not exist; see configs/ for examples") from None
        except OSError as error:
            raise ConfigError(f"config file {str(path)!r} cannot be read: {error.strerror}; name a YAML file") from None
        except (UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"config file {str(path)!r} is not YAML: {error}; see configs/ for examples") from None
        if not isinstance(tree, dict):
            raise ConfigError(f"config file {str(path)!r} must hold a mapping, got {type(tree).__name__}")
    for name in sorted(os.environ):
        if name.startswith("KTO_RAY__"):
            _set(tree, name.removeprefix("KTO_RAY__").lower().replace("__", "."), os.environ[name])
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals:
            raise ConfigError(f"--set wants a.b=c, got {item!r}")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"--set {key.strip()} has the value {text!r}, which is not YAML; quote it") from None
        _set(tree, key.strip(), value)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(e) for e in error.errors())) from None


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{key!r} cannot be set: {parent!r} is a value, not a section")
    tree[leaf] = value


def _explain(error: Any) -> str:
    """One validation error as: field, value, what is allowed, fix."""
    loc = [str(part) for part in error["loc"]]
    name = ".".join(loc)
    if error["type"] == "extra_forbidden":
        known = _fields_at(loc[:-1])
        close = difflib.get_close_matches(loc[-1], known, n=1)
        fix = f"did you mean {close[0]!r}?" if close else f"known fields: {', '.join(known)}"
        return f"config field {name!r} does not exist (value {error['input']!r}); {fix}"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"config section {name!r}: {message}" if name else f"config: {message}"
    return f"config field {name!r}: {message}, got {error['input']!r}"


def _fields_at(loc: list[str]) -> list[str]:
    section: type[BaseModel] = Config
    for part in loc:
        field = section.model_fields.get(part)
        if field is None or not isinstance(field.annotation, type) or not issubclass(field.annotation, BaseModel):
            return sorted(RolloutStage.model_fields) if "stages" in loc else []
        section = field.annotation
    return sorted(section.model_fields)
