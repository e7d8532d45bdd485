"""The adapters that one engine holds: loaded from checked copies, tried again when they could not be, let go when idle.

Whatever goes wrong with one adapter is that adapter's own: it is told with its age and tried again, after 1 s, 2 s and
so on up to a minute, and neither another adapter nor the replica suffers from it. Refused ones are tried again too:
their files may be put right, and until then the replica says what is wrong with them.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

from kto_ray.adapters import files
from kto_ray.config import Config
from kto_ray.records.adapters import AdapterVersion
from kto_ray.records.replicas import LoadFault

log = logging.getLogger(__name__)

FIRST_S, LONGEST_S = 1.0, 60.0  # between two tries of one adapter
WAIT_S = 10.0  # that a look waits for what is being loaded; a storage that hangs holds up nothing else
HANGS = "it goes on loading: neither its files nor an error come from the storage, or the engine is busy"


class Engine(Protocol):
    async def load_adapter(self, name: str, directory: str) -> None: ...
    async def unload_adapter(self, name: str) -> None: ...


@dataclass(slots=True)
class _Trouble:
    """Of an adapter that could not be loaded; times by the monotonic clock."""

    reason: str
    refused: bool
    tries: int
    began_at: float
    again_at: float


class Shelf:
    def __init__(self, config: Config, engine: Engine, probe: Callable[[str], Awaitable[None]]) -> None:
        """
        Args:
            probe: asks an adapter that was loaded for a token; raises if none comes.
        """
        self._config, self._engine, self._probe = config, engine, probe
        self._copies: dict[str, str] = {}  # of what is held -> the folder that the engine may read again
        self._troubles: dict[str, _Trouble] = {}
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._began: dict[str, float] = {}  # of what is being loaded, by the monotonic clock
        self._wanted: frozenset[str] = frozenset()  # at the last look
        self._in_use: Counter[str] = Counter()
        self._last_used: dict[str, float] = {}
        self._lock = asyncio.Lock()  # of the engine's slots
        self._changed = asyncio.Event()

    @property
    def held(self) -> tuple[str, ...]:
        return tuple(sorted(self._copies))

    @property
    def loading(self) -> bool:
        return bool(self._loading)

    @property
    def faults(self) -> dict[str, LoadFault]:
        """What could not be loaded, and what is wanted and neither loaded nor refused after `adapters.patience_s`.
        Other threads ask, too."""
        now, patience_s = time.monotonic(), max(WAIT_S, self._config.adapters.patience_s)
        ages = {name: now - began for name, began in list(self._began.items()) if name in self._wanted}
        return {name: LoadFault(HANGS, refused=False, age_s=age) for name, age in ages.items() if age > patience_s} | {
            name: LoadFault(trouble.reason, trouble.refused, trouble.tries, now - trouble.began_at)
            for name, trouble in list(self._troubles.items())
        }

    async def change(self, within_s: float) -> None:
        """Wait until `held` or `faults` has another version than when this last ended, `within_s` at the longest."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), within_s)
        self._changed.clear()

    async def follow(self, wanted: Sequence[AdapterVersion]) -> None:
        """Let go of what is neither wanted nor used, and load what is wanted and missing."""
        self._wanted = names = frozenset(version.name for version in wanted)
        for name in set(self._copies) - names:
            await self._unload_if_idle(name)
        self._troubles = {name: trouble for name, trouble in self._troubles.items() if name in names}
        if loads := [asyncio.create_task(self.load(version)) for version in wanted]:
            await asyncio.wait(loads, timeout=WAIT_S)

    async def load(self, version: AdapterVersion) -> None:
        """Load an adapter if it is missing and a try is due. What it comes to is told by `held` and `faults`.

        It goes on when its caller is cancelled: half a load would leave the engine with what nobody knows of.
        """
        trouble = self._troubles.get(version.name)
        if version.name in self._copies or (trouble is not None and time.monotonic() < trouble.again_at):
            return
        if version.name not in self._loading:
            task = asyncio.create_task(self._try(version))
            self._loading[version.name], self._began[version.name] = task, time.monotonic()
            task.add_done_callback(lambda _: self._ended(version.name))
        await asyncio.shield(self._loading[version.name])

    def _ended(self, name: str) -> None:
        self._loading.pop(name)
        self._began.pop(name)

    @contextmanager
    def using(self, name: str) -> Iterator[None]:
        """While a request uses an adapter, and for `serve.drain_s` after it, it stays."""
        self._in_use[name] += 1
        try:
            yield
        finally:
            self._in_use[name] -= 1
            self._last_used[name] = time.monotonic()

    async def _try(self, version: AdapterVersion) -> None:
        name = version.name
        try:
            self._demand_slot()
            section, keys = self._config.serve, self._config.adapters.signing_keys
            copy = await asyncio.to_thread(files.fetch, version, section.max_lora_rank, keys)
            try:
                async with self._lock:
                    await self._into_engine(name, copy)
            except Exception:
                await asyncio.to_thread(files.let_go, copy)
                raise
        except Exception as error:  # whatever it raises, here or in vLLM, it must not take chat down
            self._put_off(name, error)
            return
        if (trouble := self._troubles.pop(name, None)) is not None:
            log.warning("adapter %s is loaded, at the try after %d that failed", name, trouble.tries)
        self._copies[name] = copy
        self._changed.set()

    def _demand_slot(self) -> None:
        """One more than the engine has slots for would push another out, which it then reads anew in mid-request."""
        taken, slots = len(self._copies) + len(self._loading) - 1, self._config.serve.max_loras
        if taken >= slots:
            raise RuntimeError(
                f"all {slots} slots (serve.max_loras) are taken by {', '.join(self.held)}; "
                "one is free when the answers that use an unwanted one have ended"
            )

    async def _into_engine(self, name: str, copy: str) -> None:
        await self._engine.load_adapter(name, copy)
        try:
            await self._probe(name)
        except Exception:
            await self._out_of_engine(name)
            raise

    async def _out_of_engine(self, name: str) -> None:
        try:
            await self._engine.unload_adapter(name)
        except Exception as error:  # of a dead engine: whoever looks after its health ends the replica
            log.error("adapter %s cannot be unloaded: %s: %s", name, type(error).__name__, error)

    async def _unload_if_idle(self, name: str) -> None:
        async with self._lock:
            idle_s = time.monotonic() - self._last_used.get(name, 0.0)
            if name not in self._copies or self._in_use[name] or idle_s < self._config.serve.drain_s:
                return
            # Popped before the first await: a request that arrives now loads it again instead of losing its slot.
            copy = self._copies.pop(name)
            self._changed.set()
            await self._out_of_engine(name)
        await asyncio.to_thread(files.let_go, copy)  # a load that has begun meanwhile holds it once more

    def _put_off(self, name: str, error: Exception) -> None:
        """What is wrong with the files raises ValueError; anything else may pass."""
        now, before = time.monotonic(), self._troubles.get(name)
        tries = before.tries + 1 if before else 1
        longest = min(LONGEST_S, FIRST_S * 2.0 ** min(tries - 1, 10))
        pause_s = longest * random.uniform(0.5, 1.0)  # not all replicas at once
        reason = str(error) or type(error).__name__
        began_at = before.began_at if before else now
        self._troubles[name] = _Trouble(reason, isinstance(error, ValueError), tries, began_at, now + pause_s)
        words = "adapter %s cannot be loaded (try %d, for %.0f s now; again in %.0f s): %s"
        log.error(words, name, tries, now - began_at, pause_s, reason)
        self._changed.set()
