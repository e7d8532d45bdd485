"""The base model, its replicas and the gateway."""

from __future__ import annotations

import hashlib
from typing import Literal

from pydantic import Field

from kto_ray.config.base import EMBEDDED_MODEL, Params, Section


class ModelSection(Section):
    """The base model that is served and trained."""

    id: str = EMBEDDED_MODEL  # the embedded model, a Hugging Face id, or a local directory
    revision: str | None = None  # of a Hugging Face id; beyond one machine a commit, for nodes start on different days
    served_name: str = Field("policy", pattern=r"^[a-z0-9][a-z0-9._-]*$")
    # auto: what the serving machine computes natively (`kto-ray doctor` says what and why); training and gate follow
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    max_model_len: int = Field(1024, ge=64)  # tokens, prompt and answer together

    @property
    def of_hub(self) -> bool:
        """Whether it is fetched by its name, and not found on a disk."""
        return self.id != EMBEDDED_MODEL and not self.id.startswith(("/", "./", "../", "~"))

    @property
    def mark(self) -> str:
        """Tells one base model, and so its tokenizer, from another: 16 hex digits."""
        return hashlib.sha256(f"{self.id}@{self.revision or 'main'}".encode()).hexdigest()[:16]


class ServeSection(Section):
    """The vLLM policy replicas and the gateway in front of them."""

    device: Literal["cpu", "gpu"] = "cpu"
    replicas: int = Field(1, ge=1)
    gateways: int = Field(1, ge=1)
    tensor_parallel_size: int = Field(1, ge=1)
    gpus_per_worker: float = Field(1.0, gt=0, le=1)  # of an engine worker on device gpu; below 1 it shares the GPU
    threads: int = Field(2, ge=1)  # OpenMP threads of a CPU replica
    kv_cache_gb: int = Field(1, ge=1)  # of a CPU replica; whole ones, as vLLM takes them
    max_num_seqs: int = Field(32, ge=1)
    max_loras: int = Field(4, ge=4)  # champion, challenger, previous and one slot more, so none is evicted
    max_lora_rank: Literal[1, 8, 16, 32, 64, 128, 256, 320, 512] = 16  # those that vLLM takes
    max_output_tokens: int = Field(256, ge=1)  # when the client names no limit
    reconcile_s: float = Field(0.25, gt=0)  # between two looks at what a replica is to hold
    heartbeat_timeout_s: float = Field(15.0, gt=0)  # a replica silent for longer is not counted as live
    drain_s: float = Field(2.0, ge=0)  # an unwanted adapter stays this long after its last request
    grace_s: float = Field(120.0, ge=1)  # that a gateway or replica which is to end goes on with its answers
    # A new replica is there before the old one goes: only where there is a place (a GPU) for one more
    surge: bool = False
    engine: Params = Field(default_factory=dict)  # more vLLM engine arguments
