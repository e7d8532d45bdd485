"""Events that come together go together, in their order, and none is kept back for others to come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from kto_ray.serve.policy.bundled import bundled


async def said(*events: str | Exception | None, closed: list[bool]) -> AsyncGenerator[str, None]:
    """None lets others run."""
    try:
        for event in events:
            if isinstance(event, Exception):
                raise event
            if event is None:
                await asyncio.sleep(0.01)
            else:
                yield event
    finally:
        closed.append(True)


def test_what_comes_together_is_one_and_what_comes_later_another() -> None:
    async def act() -> None:
        closed: list[bool] = []
        events = said("a", "b", None, "c", None, None, "d", "e", "f", closed=closed)
        assert [one async for one in bundled(events)] == ["ab", "c", "def"]
        assert [one async for one in bundled(said(None, closed=closed))] == []
        assert closed == [True, True]

    asyncio.run(act())


def test_an_answer_whose_rest_came_while_its_reader_was_busy_ends() -> None:
    async def act() -> list[str]:
        told = []
        async for one in bundled(said("a", None, "b", None, "c", closed=[])):
            told.append(one)
            await asyncio.sleep(0.1)
        return told

    assert asyncio.run(asyncio.wait_for(act(), 10)) == ["a", "bc"]


def test_what_came_before_a_failure_is_told_before_it() -> None:
    async def act() -> None:
        told, closed = list[str](), list[bool]()
        with pytest.raises(ValueError, match="broken"):
            async for one in bundled(said("a", "b", ValueError("broken"), closed=closed)):
                told.append(one)
        assert told == ["ab"] and closed == [True]

    asyncio.run(act())


def test_an_answer_that_nobody_reads_on_is_closed() -> None:
    async def act() -> None:
        closed: list[bool] = []
        events = bundled(said("a", None, "b", *[None] * 1000, closed=closed))
        assert await anext(events) == "a"
        await events.aclose()
        assert closed == [True]

        waits = asyncio.create_task(anext(bundled(said(*[None] * 1000, closed=closed))))
        await asyncio.sleep(0.02)
        waits.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waits
        assert closed == [True, True]

    asyncio.run(act())
