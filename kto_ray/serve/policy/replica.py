"""The policy: a vLLM replica that holds the adapters the store asks for, and reports what it holds.

Reconciliation: read the desired set (champion, challenger, previous champion), load and probe what is missing, unload
what is no longer wanted once nothing uses it, report. A replica is ready (its constructor returns) only when it holds
the champion and has tried the rest. Names are immutable, so loading on demand is always right; it happens when a
request was routed just before an alias moved.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError
from ray import serve
from ray.serve.llm import LLMConfig, LLMServer

from kto_ray.adapters import files as adapter_files
from kto_ray.cluster import cpu_engine
from kto_ray.config import Config
from kto_ray.model import awaited
from kto_ray.paths import StorageAway
from kto_ray.processor import precision
from kto_ray.records.adapters import CHAMPION, AdapterVersion
from kto_ray.records.replicas import ReplicaReport
from kto_ray.serve.policy.engine import AdapterEngine
from kto_ray.store import adapters, replicas, store_of
from kto_ray.store.database import STARTED_S
from kto_ray.store.faults import first_line

log = logging.getLogger(__name__)

STREAM_TOKENS = 4  # of a chunk, on a CPU
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
        await super().__init__(llm_config(config, await asyncio.to_thread(awaited, config.model)))
        self._held: dict[str, str] = {}  # adapter -> directory
        self._errors: dict[str, str] = {}
        self._in_use: Counter[str] = Counter()
        self._last_used: dict[str, float] = {}
        self._lock = asyncio.Lock()  # of loading and unloading
        self._replica = serve.get_replica_context().replica_id.unique_id
        await self._probe(config.base_name)
        await self._hold_champion()
        await asyncio.to_thread(self._report)
        self._tasks = [asyncio.create_task(self._forever(step)) for step in (self._reconcile, self._tell)]

    async def generate(self, body: Mapping[str, Any], adapter: str) -> AsyncIterator[str]:
        """Answer one chat request with one adapter version.

        Args:
            body: an OpenAI chat completion request; its `model` is ignored.
            adapter: the served name of the version, or of the base model.

        Yields:
            `data: {...}` events when body["stream"], otherwise one JSON response; on a bad request one JSON object
            with the single key "error" (OpenAI's shape, `code` is the HTTP status).
        """
        from ray.serve.llm.openai_api_models import ChatCompletionRequest

        try:
            request = ChatCompletionRequest(**{**body, "model": adapter})
        except ValidationError as error:
            yield _bad_request(error)
            return
        try:
            async with self._using(adapter):
                async for item in self.engine.chat(request):
                    yield item if isinstance(item, str) else item.model_dump_json()
        except AdapterUnavailable as error:
            yield json.dumps({"error": {"message": str(error), "type": "server_error", "param": "model", "code": 503}})

    async def check_health(self) -> None:
        await super().check_health()
        if any(task.done() for task in self._tasks):
            raise RuntimeError(f"the reconcile loop of replica {self._replica} ended")

    @asynccontextmanager
    async def _using(self, name: str) -> AsyncIterator[None]:
        self._in_use[name] += 1  # before any await, so that an unload sees it
        try:
            if name != self._config.base_name and name not in self._held:
                await self._load_on_demand(name)
            yield
        finally:
            self._in_use[name] -= 1
            self._last_used[name] = time.monotonic()

    async def _load_on_demand(self, name: str) -> None:
        version = await asyncio.to_thread(self._version, name)
        if version is None:
            raise AdapterUnavailable(f"adapter {name} is not in the store")
        try:
            await self._load(version)
        except StorageAway as error:
            raise AdapterUnavailable(f"adapter {name} cannot be loaded now: {error}") from None
        if name not in self._held:
            raise AdapterUnavailable(f"adapter {name} cannot be loaded: {self._errors[name]}")

    async def _hold_champion(self) -> None:
        """Hold what is wanted, the champion before all, however long its files are out of reach: until then others
        answer.

        Raises:
            RuntimeError: the champion is refused.
        """
        champion: str | None = None

        async def ask() -> None:
            nonlocal champion
            champion = await asyncio.to_thread(self._champion)

        while champion not in (*self._held, self._config.base_name):
            await self._survive(self._reconcile)
            await self._survive(ask)
            if champion in self._errors:
                raise RuntimeError(f"champion {champion} cannot be loaded: {self._errors[champion]}")
            await asyncio.sleep(self._config.serve.reconcile_s)

    async def _forever(self, step: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(self._config.serve.reconcile_s)
            await self._survive(step)

    async def _survive(self, step: Callable[[], Awaitable[None]]) -> None:
        """An outage of the store or of the storage stops changes, not chat."""
        try:
            await step()
        except (sa.exc.SQLAlchemyError, StorageAway) as error:
            log.warning("replica %s goes on with what it has: %s", self._replica, first_line(error))

    async def _reconcile(self) -> None:
        wanted = {version.name: version for version in await asyncio.to_thread(self._desired)}
        away: StorageAway | None = None
        for name, version in wanted.items():
            if name not in self._held and name not in self._errors:
                try:
                    await self._load(version)
                except StorageAway as error:  # another's files may be here
                    away = error
        for name in set(self._held) - set(wanted):
            await self._unload_if_idle(name)
        self._errors = {name: reason for name, reason in self._errors.items() if name in wanted}
        if away is not None:
            raise away

    async def _tell(self) -> None:
        """By itself: a replica that waits for files is alive."""
        await asyncio.to_thread(self._report)

    async def _load(self, version: AdapterVersion) -> None:
        """Check, load and probe one adapter; a fault of its own is kept as the reason that the report tells.

        Raises:
            StorageAway: its files are out of reach.
        """
        async with self._lock:
            if version.name in self._held:
                return
            try:
                directory = await asyncio.to_thread(
                    adapter_files.fetch,
                    version,
                    self._config.serve.max_lora_rank,
                    self._config.adapters.signing_keys,
                )
                await self.engine.load_adapter(version.name, directory)
                await self._probe(version.name)
            except StorageAway:
                raise
            except Exception as error:  # one adapter's fault, whatever it raises in vLLM, must not take chat down
                log.error("replica %s cannot load %s: %s", self._replica, version.name, error)
                self._errors[version.name] = str(error) or type(error).__name__
                return
            self._held[version.name] = directory
            self._errors.pop(version.name, None)

    async def _unload_if_idle(self, name: str) -> None:
        async with self._lock:
            idle_s = time.monotonic() - self._last_used.get(name, 0.0)
            if self._in_use[name] or idle_s < self._config.serve.drain_s:
                return
            # Popped before the first await: a request that arrives now loads it again instead of losing its slot.
            del self._held[name]
            await self.engine.unload_adapter(name)

    async def _probe(self, name: str) -> None:
        """One token through the real path.

        Raises:
            ValueError: the engine did not answer with a completion.
        """
        from ray.serve.llm.openai_api_models import ChatCompletionRequest

        body = dict(model=name, messages=[{"role": "user", "content": "Hi"}], max_tokens=1, temperature=0.0)
        async for item in self.engine.chat(ChatCompletionRequest(**body)):
            answer = json.loads(item.model_dump_json())
            if "error" in answer:
                raise ValueError(f"probe of {name} failed: {answer['error']['message']}")

    def _desired(self) -> list[AdapterVersion]:
        with self._store.read() as tx:
            return adapters.desired(tx)

    def _version(self, name: str) -> AdapterVersion | None:
        with self._store.read() as tx:
            return adapters.get(tx, name)

    def _champion(self) -> str:
        with self._store.read() as tx:
            return adapters.aliases(tx, self._config.base_name)[CHAMPION]

    def _report(self) -> None:
        report = ReplicaReport(
            replica=self._replica,
            node=os.uname().nodename,
            pid=os.getpid(),
            held=tuple(sorted(self._held)),
            errors=self._errors,
            dtype=self._precision.dtype,
            dtype_why=self._precision.why,
        )
        with self._store.write() as tx:
            replicas.report(tx, report)


class AdapterUnavailable(RuntimeError):
    """A request named an adapter that this replica cannot hold."""


def _bad_request(error: ValidationError) -> str:
    first = error.errors()[0]
    param = ".".join(str(part) for part in first["loc"]) or None
    message = f"{param or 'request'}: {first['msg']}"
    return json.dumps({"error": {"message": message, "type": "invalid_request_error", "param": param, "code": 400}})
