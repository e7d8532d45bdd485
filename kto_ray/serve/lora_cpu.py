"""Makes vLLM serve on a CPU at a useful speed, and adapters without leaking one into another.

LoRA: vLLM's own CPU path copies the adapter's whole matrix for every token of every layer, which costs 4 to 6 times the
throughput. It also takes slot -1 (no adapter) as a Python index, so that a base-model request batched with adapter
requests gets whatever the last slot holds. `lora_cpu_wrapper` does one matrix product per adapter in the batch instead.

Waiting: engine and worker are processes that wait for each other by spinning, for a whole second before they sleep.
That is right where the model runs on a GPU; here the spinning takes a core from the model, and from its neighbours.
The notification that ends their sleep gets lost at times, which then costs the 5 s until they look again; so here they
look every few milliseconds.

vLLM starts these processes itself, so the changes are installed through the entry point group `vllm.general_plugins`,
which each of them loads. This module stays free of torch and vllm: nothing is paid where the platform is not a CPU.
"""

WRAPPER = "kto_ray.serve.lora_cpu_wrapper.GroupedPunicaWrapper"
SPIN_S = 0.0002
RECHECK_MS = 2


def register() -> None:
    """Change vLLM where its platform is a CPU. Harmless when repeated; does nothing on other platforms."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.distributed.device_communicators import shm_broadcast

    # The platform names its wrapper by a dotted path, which vLLM resolves when it builds the LoRA manager.
    type(current_platform).get_punica_wrapper = classmethod(_wrapper_path)
    shm_broadcast.SpinCondition.__init__.__defaults__ = (SPIN_S,)  # of its one optional argument, busy_loop_s
    shm_broadcast.SHM_READER_RECHECK_INTERVAL_MS = RECHECK_MS


def _wrapper_path(cls: type) -> str:
    return WRAPPER
