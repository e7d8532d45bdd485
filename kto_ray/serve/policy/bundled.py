"""Events that come together go together: a message from replica to replica costs more than the events in it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing


async def bundled(events: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """All that has come since the last, joined. It ends and fails as `events` do, which are closed with it."""
    came: list[str] = []
    told = asyncio.Event()

    async def take() -> None:
        async with aclosing(events):
            async for event in events:
                came.append(event)
                told.set()

    taking = asyncio.create_task(take())
    taking.add_done_callback(lambda _: told.set())
    try:
        while came or not taking.done():
            if came:
                together = "".join(came)
                came.clear()
                yield together  # all may come and end meanwhile: whoever waits next must first look again
            else:
                await told.wait()
                told.clear()
        await taking
    finally:
        taking.cancel()
        await asyncio.gather(taking, return_exceptions=True)
