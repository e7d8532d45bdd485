"""The bodies of requests, read in turn: few of one sender at once, so that who never ends one holds up nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from weakref import WeakValueDictionary

from fastapi import Request

from kto_ray.config.platform import LimitsSection
from kto_ray.serve.gateway.bodies import read_json
from kto_ray.serve.gateway.errors import later, short

TURN_S = 5.0  # that a request waits, unread, for its turn


class Arrivals:
    """What is on its way to one gateway."""

    def __init__(self, config: LimitsSection) -> None:
        self._config = config
        self._all = asyncio.Semaphore(config.bodies_in_all)
        self._of = WeakValueDictionary[str, asyncio.Semaphore]()  # of senders with a request here

    @asynccontextmanager
    async def turn(self, sender: str | None) -> AsyncIterator[None]:
        """Hold a place while a body is read. Without keys everybody is one: the sum alone binds, as it does for chats.

        Raises:
            ApiError: 429 and 503, none came free in time.
        """
        most = self._config.bodies_at_once
        async with AsyncExitStack() as held:
            if sender is not None:
                own = self._of.setdefault(sender, asyncio.Semaphore(most))
                if not await _entered(held, own):
                    words = f"{most} requests of {short(sender)} are still sending their bodies (limits.bodies_at_once)"
                    raise later(429, 1, words)
            if not await _entered(held, self._all):
                raise later(503, 1, "too many requests are still sending their bodies (limits.bodies_in_all)")
            yield


async def read_body(request: Request, sender: str | None) -> dict[str, Any]:
    """The JSON object that a request brings.

    Raises:
        ApiError: 400, 408, 413 or 415 of the body; 429 and 503, too many are on their way.
    """
    arrivals: Arrivals = request.state.arrivals
    async with arrivals.turn(sender):
        return await read_json(request)


async def _entered(held: AsyncExitStack, bound: asyncio.Semaphore) -> bool:
    try:
        async with asyncio.timeout(TURN_S):
            await held.enter_async_context(bound)
    except TimeoutError:
        return False
    return True
