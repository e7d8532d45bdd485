"""The policy: a vLLM replica that holds the adapters the store asks for, and reports what it holds.

Reconciliation: read the desired set (champion, challenger, previous champion), load and probe what is missing, unload
what is no longer wanted once nothing uses it, report. A replica is ready (its constructor returns) when it holds the
champion and has tried the rest. Where it cannot load the champion it stays out as long as another replica holds it; if
none does, it comes in without, says so, and goes on trying: the gateways then ask for another (`champions_answer`).
Names are immutable, so loading on demand is always right; it happens when a request was routed just before an alias
moved.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError
from ray import serve
from ray.serve.llm import LLMConfig, LLMServer

from kto_ray.adapters.files import sweep
from kto_ray.cluster import cpu_engine
from kto_ray.config import Config
from kto_ray.model import awaited
from kto_ray.processor import precision
from kto_ray.records.adapters import AdapterVersion
from kto_ray.serve.policy import logs, refusals
from kto_ray.serve.policy.bundled import bundled
from kto_ray.serve.policy.engine import AdapterEngine
from kto_ray.serve.policy.reports import Reports
from kto_ray.serve.policy.shelf import Shelf
from kto_ray.store import adapters, store_of
from kto_ray.store.database import STARTED_S
from kto_ray.store.faults import first_line

log = logging.getLogger(__name__)

STREAM_TOKENS = 4  # of a chunk, on a CPU
LACKS_S = 1.0  # before it says that it lacks a version: who refuses at once has the shortest queue, and is asked next
DEAD_S = 0.1  # that a dead engine may go unnoticed where nobody asks it for anything
TELL_S = 1.0  # between two reports where nothing has changed; what has is told at once, for a flip waits for it
# Of replicas: one event loop for Serve's router and our code, for handing messages over takes from the model.
ONE_LOOP = {"RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0", "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"}


def llm_config(config: Config, model_source: str) -> LLMConfig:
    """Ray's LLM config of the policy: one engine a replica, LoRA on.

    Args:
        model_source: where the base model's files are, as this process sees them.
    """
    section, model = config.serve, config.model
    gpu = section.device == "gpu"
    env = {"RAY_USAGE_STATS_ENABLED": "0", "VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false", **ONE_LOOP}
    engine: dict[str, Any] = dict(
        dtype=model.dtype,
        max_model_len=model.max_model_len,
        max_num_seqs=section.max_num_seqs,
        revision=model.revision,
        tokenizer_revision=model.revision,
        tensor_parallel_size=section.tensor_parallel_size,
        enable_lora=True,
        max_loras=section.max_loras,
        max_cpu_loras=section.max_loras,
        max_lora_rank=section.max_lora_rank,
        scheduling_policy="priority",  # the gate's prompts wait behind users', who are served in the order they come
    )
    if not gpu:
        # Compilation takes minutes and made small models slower. A streamed chunk costs 3 ms of a core, which
        # the model then lacks: after the first token, several go together.
        engine |= dict(enforce_eager=True, stream_interval=STREAM_TOKENS)
        env |= cpu_engine(section.threads, section.kv_cache_gb)
    bundle = {"GPU": section.gpus_per_worker} if gpu else {"CPU": 1}
    selector = config.pool("serve")
    return LLMConfig(
        model_loading_config=dict(model_id=config.base_name, model_source=model_source),
        accelerator_config={"kind": section.device},
        engine_kwargs=engine | dict(section.engine),
        runtime_env={"env_vars": env},
        placement_group_config={"bundle_per_worker": bundle, "strategy": "STRICT_PACK"},  # one engine, one node
        log_engine_metrics=gpu,
        deployment_config=dict(
            num_replicas=section.replicas,
            max_ongoing_requests=4 * section.max_num_seqs,
            health_check_period_s=5,
            health_check_timeout_s=60,
            graceful_shutdown_timeout_s=section.grace_s,
            logging_config={"enable_access_log": False},  # a gateway has told of the request, and the store keeps it
            max_surge_percent=100 if section.surge else 0,
            **({"placement_group_bundle_label_selector": [selector]} if selector else {}),
        ),
    )


class Policy(LLMServer):
    """One vLLM replica. `generate` is its only call; everything else is Ray's."""

    _default_engine_cls = AdapterEngine

    async def __init__(self, config: Config) -> None:
        # Model and precision are found here, not where the application was built: another machine, another cache.
        self._precision = precision(config.serve.device, config.model.dtype)
        if self._precision.emulated:
            log.warning("model.dtype is %s: %s", self._precision.dtype, self._precision.why)
        config = config.with_dtype(self._precision.dtype)
        self._config = config
        self._store = await asyncio.to_thread(store_of, config, wait_s=STARTED_S)
        source = await asyncio.to_thread(awaited, config.model)
        with logs.kept():
            await super().__init__(llm_config(config, source))
        self._shelf = Shelf(config, self.engine, self._probe)
        self._replica = serve.get_replica_context().replica_id.unique_id
        self._reports = Reports(config, self._store, self._shelf, self._replica, self._precision)
        await self._probe(config.base_name)
        watch = asyncio.create_task(self._die_with_engine())  # also before it is ready: nobody else looks then
        await self._survive(self._sweep)
        await self._hold_champion()
        if self._shelf.faults:
            await asyncio.sleep(config.serve.drain_s)  # the gateways read what it lacks before they ask it for anything
        look_s = config.serve.reconcile_s
        self._tasks = [
            watch,
            asyncio.create_task(self._forever(lambda: asyncio.sleep(look_s), self._reconcile)),
            asyncio.create_task(self._forever(lambda: self._shelf.change(TELL_S), self._tell)),
        ]

    async def generate(self, body: Mapping[str, Any], adapter: str, everywhere: bool = False) -> AsyncIterator[str]:
        """Answer one chat request with one adapter version.

        Args:
            body: an OpenAI chat completion request; its `model` is ignored.
            adapter: the served name of the version, or of the base model.
            everywhere: whether every live replica holds it, as far as the caller knows.

        Yields:
            `data: {...}` events when body["stream"], those in one that come together; otherwise one JSON response. On a
            bad request one JSON object with the single key "error" (OpenAI's shape, `code` is the HTTP status).
        """
        from ray.serve.llm.openai_api_models import ChatCompletionRequest
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            request = ChatCompletionRequest(**{**body, "model": adapter})
        except ValidationError as error:
            yield refusals.bad_request(error)
            return
        try:
            with self._shelf.using(adapter):  # before any await, so that an unload sees it
                if adapter != self._config.base_name and adapter not in self._shelf.held:
                    await self._load_on_demand(adapter, everywhere)
                async for events in bundled(self._said(request)):
                    yield events
        except AdapterUnavailable as error:
            await asyncio.sleep(LACKS_S)
            yield refusals.unavailable(str(error))
        except EngineDeadError:
            self.engine.die_if_dead()
            raise

    async def _said(self, request: Any) -> AsyncGenerator[str, None]:
        async for item in self.engine.chat(request):
            self.engine.die_if_dead()  # what it says is its own failure, and no answer
            yield item if isinstance(item, str) else item.model_dump_json()

    async def check_health(self) -> None:
        await super().check_health()
        for task in self._tasks:
            if task.done():
                raise RuntimeError(f"a loop of replica {self._replica} has ended: {task.exception()!r}")
        if self._reports.left_behind:
            raise RuntimeError(
                f"replica {self._replica} cannot reach the store, and the others have gone on without it"
            )

    async def _load_on_demand(self, name: str, everywhere: bool) -> None:
        """Raises:
        AdapterUnavailable: it is not held then; why is told to operators only.
        """
        try:
            version = await asyncio.to_thread(self._version, name)
        except sa.exc.SQLAlchemyError as error:
            log.warning("adapter %s is asked for and cannot be looked up: %s", name, first_line(error))
            if everywhere:
                self._reports.lacks_what_all_hold()
            raise AdapterUnavailable(f"adapter {name} cannot be loaded now: the store is away") from None
        if version is None:
            raise AdapterUnavailable(f"adapter {name} is not in the store")
        await self._shelf.load(version)
        if name not in self._shelf.held:
            raise AdapterUnavailable(f"adapter {name} cannot be loaded now")

    async def _hold_champion(self) -> None:
        """Hold what is wanted, the champion before all, and be one of those that are live. It is waited for as long as
        others hold it, who answer; where none does, for `adapters.patience_s` if it may still come, and not at all if
        it is refused."""
        patient_until, is_in = time.monotonic() + self._config.adapters.patience_s, False

        async def come_in() -> None:
            nonlocal is_in
            is_in = await asyncio.to_thread(self._reports.come_in, time.monotonic() > patient_until)

        while True:
            if await self._survive(self._reconcile):
                await self._survive(come_in)
            if is_in:
                return
            await asyncio.sleep(self._config.serve.reconcile_s)

    async def _forever(self, wait: Callable[[], Awaitable[None]], step: Callable[[], Awaitable[None]]) -> None:
        while True:
            await wait()
            await self._survive(step)

    async def _survive(self, step: Callable[[], Awaitable[None]]) -> bool:
        """Whether it was done. An outage of the store stops changes, not chat, and so does what nobody foresaw."""
        try:
            await step()
        except Exception as error:
            words = "replica %s goes on with what it has: %s: %s"
            log.warning(words, self._replica, type(error).__name__, first_line(error))
            return False
        return True

    async def _sweep(self) -> None:
        """What killed processes left in the cache."""
        await asyncio.to_thread(lambda: sweep(self._desired()))

    async def _die_with_engine(self) -> None:
        while True:
            self.engine.die_if_dead()
            await asyncio.sleep(DEAD_S)

    async def _reconcile(self) -> None:
        await self._shelf.follow(await asyncio.to_thread(self._desired))

    async def _tell(self) -> None:
        """By itself: a replica that waits for files is alive."""
        if not self._reports.silent:
            await asyncio.to_thread(self._reports.tell)
            return
        await asyncio.to_thread(self._reports.come_back)
        if self._reports.silent:  # it lacks what is champion now
            await self._reconcile()
            await asyncio.to_thread(self._reports.come_back)

    async def _probe(self, name: str) -> None:
        """One token through the real path.

        Raises:
            RuntimeError: the engine did not answer with a completion; what it refuses of an adapter, it refuses before.
        """
        from ray.serve.llm.openai_api_models import ChatCompletionRequest

        body = dict(model=name, messages=[{"role": "user", "content": "Hi"}], max_tokens=1, temperature=0.0)
        async for item in self.engine.chat(ChatCompletionRequest(**body)):
            answer = json.loads(item.model_dump_json())
            if "error" in answer:
                raise RuntimeError(f"probe of {name} failed: {answer['error']['message']}")

    def _desired(self) -> list[AdapterVersion]:
        with self._store.read() as tx:
            return adapters.desired(tx)

    def _version(self, name: str) -> AdapterVersion | None:
        with self._store.read() as tx:
            return adapters.get(tx, name)


class AdapterUnavailable(RuntimeError):
    """A request named an adapter that this replica cannot hold."""
