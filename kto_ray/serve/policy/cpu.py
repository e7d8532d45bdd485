"""Makes vLLM serve on a CPU at a useful speed, and adapters without leaking one into another.

LoRA: vLLM's own CPU path copies the adapter's whole matrix for every token of every layer, which costs 4 to 6 times the
throughput. It also takes slot -1 (no adapter) as a Python index, so that a base-model request batched with adapter
requests gets whatever the last slot holds. `cpu_lora` does two small products a layer instead.

Sampling: vLLM sorts the whole vocabulary for each token that is sampled with top-p; `cpu_sampler` looks at its head.

Waiting: engine and worker are processes that wait for each other by spinning, for a whole second before they sleep.
That is right where the model runs on a GPU; here the spinning takes a core from the model, and from its neighbours.
The notification that ends their sleep goes through a ZeroMQ socket that holds one message and drops the next until it
has noticed that the first is gone; it looks only once in 3 million ticks of the processor's clock, about a millisecond.
A reader that spins for a second never needs the dropped one; one that sleeps sooner waits out the 5 s after which vLLM
looks by itself. So here the socket is made to look before it sends. A wake-up can be lost on the reader's side, too,
where ZeroMQ keeps the latest message only and the core is taken from it at the wrong moment; so a reader looks by
itself 20 times a second.

vLLM starts these processes itself, so the changes are installed through the entry point group `vllm.general_plugins`,
which each of them loads. This module stays free of torch and vllm: nothing is paid where the platform is not a CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.distributed.device_communicators.shm_broadcast import SpinCondition

WRAPPER = "kto_ray.serve.policy.cpu_lora.GroupedPunicaWrapper"
SPIN_S = 0.0002
LOOK_MS = 50


def register() -> None:
    """Change vLLM where its platform is a CPU. Harmless when repeated; does nothing on other platforms."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.distributed.device_communicators import shm_broadcast
    from vllm.lora.model_manager import LoRAModelManager
    from vllm.v1.sample.ops import topk_topp_sampler

    from kto_ray.serve.policy import cpu_lora
    from kto_ray.serve.policy.cpu_sampler import apply_top_k_top_p

    LoRAModelManager.activate_adapter = cpu_lora.activate_adapter
    LoRAModelManager.set_adapter_mapping = cpu_lora.set_adapter_mapping
    topk_topp_sampler.apply_top_k_top_p = apply_top_k_top_p
    # The platform names its wrapper by a dotted path, which vLLM resolves when it builds the LoRA manager.
    type(current_platform).get_punica_wrapper = classmethod(_wrapper_path)
    shm_broadcast.SpinCondition.__init__.__defaults__ = (SPIN_S,)  # of its one optional argument, busy_loop_s
    shm_broadcast.SpinCondition.notify = _notify
    shm_broadcast.SHM_READER_RECHECK_INTERVAL_MS = LOOK_MS


def _notify(condition: SpinCondition) -> None:
    """Wake the readers. Whoever asks a socket for its events has it process what its peer has told it since."""
    import zmq

    condition.local_notify_socket.getsockopt(zmq.EVENTS)
    condition.local_notify_socket.send(b"\x00")


def _wrapper_path(cls: type) -> str:
    return WRAPPER
