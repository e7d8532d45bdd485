"""What every route is given: the config, the view, the engine behind it, and the ways to the store: a few threads that
read, and the one writer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from kto_ray.config import Config
from kto_ray.records.completions import Completion
from kto_ray.records.feedback import Feedback
from kto_ray.serve.gateway.conversations import Conversations
from kto_ray.serve.gateway.errors import ApiError
from kto_ray.serve.gateway.view import View, Viewer
from kto_ray.store import Store, spool
from kto_ray.store.database import DOOR
from kto_ray.store.recording import Receipt
from kto_ray.store.spool import Spool, SpoolFailed
from kto_ray.store.writer import Writer, WriterBusy

log = logging.getLogger(__name__)

T = TypeVar("T")

# One chat request, the adapter that is to answer it, and whether every replica holds that; yields what
# `Policy.generate` does; closed, it stops it.
Generate = Callable[[Mapping[str, Any], str, bool], AsyncGenerator[str, None]]

READS_WAITING = 64  # beyond those that are under way; more are refused
RETRY_AFTER = {"retry-after": "1"}  # seconds


class Door:
    """Serve gives a replica few threads, and all to one pool: reading has its own, so that slow pages hold no chat."""

    def __init__(self, config: Config, store: Store, generate: Generate) -> None:
        """Raises:
        ValueError: the spool's folder cannot be written.
        """
        self.config, self.store, self.generate = config, store, generate
        self.viewer = Viewer(config, store)
        self.writer = Writer(store, _spool(config), config.feedback)
        self._readers = ThreadPoolExecutor(DOOR.readers, thread_name_prefix="reader")
        self._reads = 0
        self.conversations = Conversations(self.read)

    @property
    def view(self) -> View:
        return self.viewer.view

    async def read(self, query: Callable[[sa.Connection], T]) -> T:
        """Raises:
        ApiError: 503, too many wait for the store already.
        """

        def run() -> T:
            with self.store.read() as tx:
                return query(tx)

        return await self.aside(run)

    def page(self, query: Callable[[sa.Connection], T]) -> Callable[[], Awaitable[T]]:
        """A query that is often asked for and may be slow: it runs once at a time, and all who ask meanwhile share the
        next run. So it takes one reader at most, and nobody is told what was true before they asked."""
        running, following = asyncio.Lock(), list[asyncio.Task[T]]()

        async def run() -> T:
            async with running:
                following.clear()
                return await self.read(query)

        async def ask() -> T:
            if not following:
                following.append(asyncio.create_task(run()))
            return await asyncio.shield(following[0])

        return ask

    async def aside(self, work: Callable[[], T]) -> T:
        """Something slow, by one of the readers' threads.

        Raises:
            ApiError: 503, too many wait for these already.
        """
        if self._reads >= DOOR.readers + READS_WAITING:
            raise ApiError(503, f"{READS_WAITING} requests wait to be read already; try again", headers=RETRY_AFTER)
        self._reads += 1
        running = self._readers.submit(work)
        running.add_done_callback(self._read_done)  # also of a client that has left: its thread is not free before
        return await asyncio.wrap_future(running)

    async def write(self, change: Callable[[sa.Connection], T]) -> T:
        """A short change, durable when it returns, whether or not its client still waits.

        Raises:
            ApiError: 503, too many changes wait already.
            sqlalchemy.exc.SQLAlchemyError: the store is away.
        """
        return await _durable(lambda: self.writer.change(change))

    async def keep(self, completion: Completion) -> None:
        """A completion, durable when it returns: in the store, or in the spool while that is away.

        Raises:
            ApiError: 503, neither took it.
        """
        self.conversations.answered(completion)
        await _durable(lambda: self.writer.keep(completion))

    def leave(self, completion: Completion) -> None:
        """A completion that nobody waits for: of a client that left, say. It goes the same way."""
        self.conversations.answered(completion)
        try:
            self.writer.keep(completion).add_done_callback(lambda done: _log_lost(completion, done.exception()))
        except WriterBusy as error:
            _log_lost(completion, error)

    async def record(self, event: Feedback) -> Receipt:
        """A feedback event, durable when it returns. What the spool took is pending.

        Raises:
            KeyReused: its key is known with another body.
            ApiError: 503, neither store nor spool took it.
        """
        return await _durable(lambda: self.writer.record(event))

    def close(self) -> None:
        """Write what waits and stop; what is left in the spool, the next start brings to the store."""
        self.viewer.close()
        self.writer.close()
        self._readers.shutdown(cancel_futures=True)

    def _read_done(self, _: Future[Any]) -> None:
        self._reads -= 1


async def _durable(submit: Callable[[], Future[T]]) -> T:
    """Shielded: a client that leaves while its row is being written must not lose it."""
    try:
        return await asyncio.shield(asyncio.wrap_future(submit()))
    except WriterBusy as error:
        raise ApiError(503, str(error), code="busy", headers=RETRY_AFTER) from None
    except SpoolFailed as error:
        raise ApiError(503, str(error), code="not_recorded", headers=RETRY_AFTER) from None


def _log_lost(completion: Completion, error: BaseException | None) -> None:
    if error is not None:
        log.error("completion %s (%s) is not stored: %s", completion.id, completion.status, error)


def _spool(config: Config) -> Spool:
    try:
        return spool.own(Path(config.spool))
    except OSError as error:
        raise ValueError(
            f"the spool's folder {config.spool!r} cannot be used: {error}; answers and feedback are kept there while "
            "the store is away: name a local folder that may be written, with http.spool"
        ) from error
