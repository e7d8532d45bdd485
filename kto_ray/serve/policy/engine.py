"""The vLLM engine of a policy replica. Only its replica may load and unload an adapter, in process; no request can."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from ray.llm._internal.serve.core.configs.llm_config import DiskMultiplexConfig
from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine

log = logging.getLogger(__name__)


class AdapterEngine(VLLMEngine):
    """vLLM behind Ray's engine interface, plus the two calls that reconciliation needs.

    Ray's own loader takes cloud URIs only and loads at the first request; vLLM's HTTP endpoints would let any client
    load weights. Both are avoided by calling the engine in process.
    """

    async def start(self) -> None:
        """Start as Ray's does, without its task that downloads the model where the model's files are here.

        The task's process imports vLLM to find that there is nothing to do: 10 s of a start on two cores.
        """
        here = Path(self.llm_config.get_engine_config().actual_hf_model_id).is_dir()
        self.llm_config.get_or_create_callback().ctx.run_init_node = not here
        await super().start()

    def die_if_dead(self) -> None:
        """End this process where vLLM's have ended, which nothing starts again.

        A dead engine refuses faster than others answer, so that requests flock to it until Serve has looked three times
        in vain. A dead process is left at the first of them, and another replica answers that.
        """
        if self._engine_client.errored:
            log.critical("the engine has ended, and so does its replica")
            os._exit(1)

    async def load_adapter(self, name: str, directory: str) -> None:
        """Load a LoRA adapter and hold it under `name`; one at a time.

        Raises:
            ValueError: vLLM refused the adapter; the message is vLLM's.
            Exception: the engine has ended, which vLLM tells of in the same way.
        """
        asked = DiskMultiplexConfig(model_id=name, max_total_tokens=None, local_path=directory, lora_assigned_int_id=0)
        numbers = self._oai_models.lora_id_counter
        before = numbers.value
        try:
            await self.resolve_lora(asked)
        except ValueError:
            await self.check_health()
            if numbers.value != before:  # its workers may have taken a slot before they failed, which nobody names now
                await self._engine_client.remove_lora(numbers.value)
            raise

    async def unload_adapter(self, name: str) -> None:
        """Forget an adapter and free its slot.

        The caller makes sure that no request uses it: vLLM would load it again from disk within the next step, and fail
        the whole engine where the files are gone.
        """
        request = self._oai_models.lora_requests.pop(name)
        await self._engine_client.remove_lora(request.lora_int_id)
