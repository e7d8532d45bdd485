"""Clients that leave: the engine is freed, and what was answered so far leaves a row."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from kto_ray.records.completions import Completion
from kto_ray.store import completions
from tests.api.conftest import HI, Api


class Client:
    """An ASGI server's side of one request, whose client leaves when told to."""

    def __init__(self, api: Api, path: str, body: dict[str, Any], version: str = "2.3") -> None:
        self.app: Any = api.client.app
        self.sent: list[Any] = []
        self.left = asyncio.Event()
        self.news = asyncio.Event()
        self._body: bytes | None = json.dumps(body).encode()
        self._refuses = version >= "2.4"
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": version},
            "method": "POST",
            "path": path,
            "query_string": b"",
            "client": ("127.0.0.1", 50000),
            "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
        }

    async def receive(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if self._refuses and self.left.is_set():
            raise OSError("the client left")
        self.sent.append(message)
        self.news.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            await asyncio.sleep(0.005)

    def start(self) -> asyncio.Task[None]:
        return asyncio.create_task(self.app(self.scope, self.receive, self.send))


async def row_of(api: Api, user: str) -> Completion:
    for _ in range(500):
        with api.store.read() as tx:
            if rows := completions.of_user(tx, user):
                [row] = rows
                return row
        await asyncio.sleep(0.01)
    raise AssertionError("no row")


PATHS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": HI}),
    ("/v1/responses", {"input": "Why is the sky blue?"}),
]


@pytest.mark.parametrize(("path", "body"), PATHS)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("cut", [False, True])
def test_before_anything_came(api: Api, path: str, body: dict[str, Any], stream: bool, cut: bool) -> None:
    """The client leaves, or the server cuts the request off, as Serve does."""
    api.engine.stalls_after = 0

    async def leave() -> Completion:
        client = Client(api, path, {**body, "user": "ann", "stream": stream})
        request = client.start()
        await client.until(lambda: bool(api.engine.asked))
        if cut:
            request.cancel()
        client.left.set()
        await asyncio.wait([request], timeout=5)
        assert request.done()
        return await row_of(api, "ann")

    row = asyncio.run(leave())
    assert (row.status, row.text, api.engine.stopped) == ("aborted", "", 1)


@pytest.mark.parametrize(("path", "body"), PATHS)
@pytest.mark.parametrize("cut", [False, True])
def test_in_mid_stream(api: Api, path: str, body: dict[str, Any], cut: bool) -> None:
    api.engine.stalls_after = 2

    async def leave() -> Completion:
        client = Client(api, path, {**body, "user": "ann", "stream": True})
        request = client.start()
        await client.until(lambda: any(b" sky" in message.get("body", b"") for message in client.sent))
        if cut:
            request.cancel()
        client.left.set()
        await asyncio.wait([request], timeout=5)
        assert request.done()
        return await row_of(api, "ann")

    row = asyncio.run(leave())
    assert (row.status, row.text, api.engine.stopped) == ("aborted", "The sky", 1)


def test_where_the_server_tells_it_by_an_error(api: Api) -> None:
    """Newer ASGI servers raise when the client is gone, and send no message of it."""
    api.engine.pause_s = 0.02

    async def leave() -> Completion:
        client = Client(api, "/v1/chat/completions", {"messages": HI, "user": "ann", "stream": True}, "2.4")
        request = client.start()
        await client.until(lambda: len(client.sent) > 1)
        client.left.set()
        await asyncio.wait([request], timeout=5)
        assert request.done() and request.exception() is None
        return await row_of(api, "ann")

    row = asyncio.run(leave())
    assert row.status == "aborted" and row.text.startswith("The") and api.engine.stopped == 1


def test_after_the_end_the_row_is_complete_and_the_only_one(api: Api) -> None:
    async def leave() -> Completion:
        client = Client(api, "/v1/chat/completions", {"messages": HI, "user": "ann", "stream": True})
        request = client.start()
        await client.until(lambda: any(b"[DONE]" in message.get("body", b"") for message in client.sent))
        client.left.set()
        await request
        await asyncio.sleep(0.05)
        return await row_of(api, "ann")

    row = asyncio.run(leave())
    assert (row.status, row.text, api.engine.stopped) == ("complete", "The sky is blue.", 0)


def test_many_that_leave_at_once_start_no_threads_of_their_own(api: Api) -> None:
    import threading

    api.engine.stalls_after = 1

    async def leave() -> int:
        clients = [
            Client(api, "/v1/chat/completions", {"messages": HI, "user": f"u{n}", "stream": True}) for n in range(100)
        ]
        requests = [client.start() for client in clients]
        for client in clients:
            await client.until(lambda client=client: len(client.sent) > 1)  # type: ignore[misc]
        for client in clients:
            client.left.set()
        await asyncio.wait(requests, timeout=20)
        threads = threading.active_count()
        for n in range(100):
            assert (await row_of(api, f"u{n}")).status == "aborted"
        return threads

    assert asyncio.run(leave()) < 60  # of asyncio's own pool
    assert api.engine.stopped == 100
