"""Makes vLLM serve LoRA adapters on a CPU at a useful speed and without leaking one into another.

vLLM's own CPU path copies the adapter's whole matrix for every token of every layer, which costs 4 to 6 times the
throughput. It also takes slot -1 (no adapter) as a Python index, so that a base-model request batched with adapter
requests gets whatever the last slot holds. `lora_cpu_wrapper` does one matrix product per adapter in the batch instead.

vLLM starts engine and worker processes of its own, so the change is installed through the entry point group
`vllm.general_plugins`, which each of them loads. This module stays free of torch and vllm: nothing is paid where the
platform is not a CPU.
"""

WRAPPER = "kto_ray.serve.lora_cpu_wrapper.GroupedPunicaWrapper"


def register() -> None:
    """Point vLLM's CPU platform at the grouped wrapper. Harmless when repeated; does nothing on other platforms."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    # The platform names its wrapper by a dotted path, which vLLM resolves when it builds the LoRA manager.
    type(current_platform).get_punica_wrapper = classmethod(_wrapper_path)


def _wrapper_path(cls: type) -> str:
    return WRAPPER
