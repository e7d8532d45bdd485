"""The private names of libraries that kto_ray stands on, with the version in which they were read.

None of them is promised to anyone, so a new version may lack them without a word. `tests/unit/test_borrowed.py` looks
for each in what is installed: raise a version in pyproject.toml, run it, read what it names, and then this list.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Borrowed:
    """`text` must stand in the source of `module`; `used_by` says where kto_ray relies on it, `why` for what."""

    package: str
    version: str
    module: str
    text: str
    used_by: str
    why: str


RAY, VLLM, TRL, TRANSFORMERS = ("ray", "2.60.0"), ("vllm", "0.32.0"), ("trl", "1.16.0"), ("transformers", "5.19.0")
_LLM = "ray.llm._internal.serve"
_ENGINE = "serve/policy/engine.py"

BORROWED = (
    Borrowed(*RAY, f"{_LLM}.core.configs.llm_config", "class DiskMultiplexConfig", _ENGINE, "names a LoRA on disk"),
    Borrowed(*RAY, f"{_LLM}.engines.vllm.vllm_engine", "def resolve_lora", _ENGINE, "loads one, in process"),
    Borrowed(*RAY, f"{_LLM}.engines.vllm.vllm_engine", "self._oai_models", _ENGINE, "knows the loaded ones"),
    Borrowed(*RAY, f"{_LLM}.engines.vllm.vllm_engine", "self._engine_client", _ENGINE, "unloads one"),
    Borrowed(*RAY, f"{_LLM}.engines.vllm.vllm_engine", "ctx.run_init_node", _ENGINE, "a start without a download"),
    Borrowed(
        *RAY,
        "ray.data._internal.execution.execution_callback",
        "class ExecutionCallback",
        "data/stream.py",
        "pauses Ray Data's scheduling loop",
    ),
    Borrowed(
        *RAY,
        "ray.data._internal.execution.streaming_executor",
        "self._topology",
        "data/stream.py",
        "sees whether a turn of the loop moved anything",
    ),
    Borrowed(
        *RAY,
        "ray.train.v2._internal.exceptions",
        "class WorkerHealthCheckFailedError",
        "train/failure.py",
        "tells a dead worker from one that failed",
    ),
    Borrowed(
        *RAY,
        "ray.train.v2._internal.constants",
        '"checkpoint_manager_snapshot.json"',
        "train/job.py",
        "a record that a kill cut short would refuse the run for ever",
    ),
    Borrowed(
        *RAY,
        "ray.serve._private.constants",
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD",
        "serve/policy/replica.py",
        "one event loop a replica",
    ),
    Borrowed(*RAY, "ray._private.ray_constants", "ENABLE_RAY_CLUSTER", "cluster.py", "a node on loopback only"),
    Borrowed(
        *VLLM,
        "vllm.distributed.device_communicators.shm_broadcast",
        "class SpinCondition",
        "serve/policy/cpu.py",
        "waits without spinning",
    ),
    Borrowed(
        *VLLM,
        "vllm.distributed.device_communicators.shm_broadcast",
        "wait_ms = SHM_READER_RECHECK_INTERVAL_MS",
        "serve/policy/cpu.py",
        "a lost wake-up costs 50 ms, not 5 s",
    ),
    Borrowed(
        *VLLM,
        "vllm.v1.sample.ops.topk_topp_sampler",
        "def apply_top_k_top_p",
        "serve/policy/cpu_sampler.py",
        "sorts a few logits in place of all",
    ),
    Borrowed(
        *VLLM,
        "vllm.lora.punica_wrapper.punica_cpu",
        "class PunicaWrapperCPU",
        "serve/policy/cpu_lora.py",
        "two small products a layer",
    ),
    Borrowed(
        *VLLM,
        "vllm.lora.model_manager",
        "self.punica_wrapper_mapping",
        "serve/policy/cpu_lora.py",
        "tells who made products of a slot's weights that others are written",
    ),
    Borrowed(
        *VLLM,
        "vllm.lora.model_manager",
        "self._active_adapters",
        "serve/policy/cpu_lora.py",
        "tells what is written from what is there already",
    ),
    Borrowed(
        *VLLM,
        "vllm.lora.model_manager",
        "def set_adapter_mapping",
        "serve/policy/cpu_lora.py",
        "called once before each forward pass",
    ),
    Borrowed(
        *VLLM,
        "vllm._custom_ops",
        "def create_onednn_mm",
        "serve/policy/cpu_layer.py",
        "products whose weights are laid out before, as vLLM's own layers have them",
    ),
    Borrowed(*VLLM, "vllm._custom_ops", "torch.ops._C.onednn_mm(", "serve/policy/cpu_layer.py", "these products"),
    Borrowed(
        *VLLM,
        "vllm.lora.layers.base",
        "self.base_layer",
        "serve/policy/cpu_lora.py",
        "what a layer asks for at each step",
    ),
    Borrowed(*TRL, "trl.trainer.kto_trainer", "def _compute_loss", "train/kto.py", "our step in TRL's trainer"),
    Borrowed(*TRL, "trl.trainer.kto_trainer", "self._metrics", "train/kto.py", "figures of a step"),
    Borrowed(*TRL, "trl.trainer.kto_trainer", "self._total_train_tokens", "train/kto.py", "tokens of a step"),
    Borrowed(*TRL, "trl.trainer.utils", "def use_adapter", "train/kto.py", "the frozen copy of an adapter"),
    Borrowed(
        *TRANSFORMERS, "transformers.trainer", "self._created_lr_scheduler", "train/kto.py", "our schedule, saved too"
    ),
    Borrowed(
        *TRANSFORMERS,
        "transformers.configuration_utils",
        "_attn_implementation",
        "train/reference.py",
        "log-probabilities are kept for one way to compute",
    ),
)
