"""Clients that leave: the engine is freed, and what was answered so far leaves a row. And those whose body never comes:
they hold up nobody."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kto_ray.config import Config
from kto_ray.records.completions import Completion
from kto_ray.records.keys import Scope
from kto_ray.serve.gateway.api import build
from kto_ray.store import Store, completions, keys
from tests.api.conftest import HI, Api
from tests.support.engine import StandIn
from tests.support.local import local


class Client:
    """An ASGI server's side of one request, whose client leaves when told to."""

    def __init__(self, api: Api, path: str, body: dict[str, Any] | None, version: str = "2.3", **headers: str) -> None:
        """
        Args:
            body: None, it never comes.
        """
        self.app: Any = api.client.app
        self.sent: list[Any] = []
        self.left = asyncio.Event()
        self.news = asyncio.Event()
        self._body = None if body is None else json.dumps(body).encode()
        told = {"host": "localhost", "content-type": "application/json", **headers}
        self._refuses = version >= "2.4"
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": version},
            "method": "POST",
            "path": path,
            "query_string": b"",
            "client": ("127.0.0.1", 50000),
            "headers": [(name.encode(), value.encode()) for name, value in told.items()],
        }

    async def receive(self) -> dict[str, Any]:
        await asyncio.sleep(0)  # as over a wire
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

    @property
    def status(self) -> int | None:
        return self.sent[0]["status"] if self.sent else None


async def row_of(api: Api, user: str) -> Completion:
    for _ in range(500):
        with api.store.read() as tx:
            if rows := completions.of_user(tx, user):
                [row] = rows
                return row
        await asyncio.sleep(0.01)
    raise AssertionError("no row")


async def row_of_who_leaves(
    api: Api, client: Client, when: Callable[[], bool], cut: bool, after_s: float = 0
) -> Completion:
    """Ann leaves so long after that holds, or the server cuts her request off, as Serve does."""
    request = client.start()
    await client.until(when)
    await asyncio.sleep(after_s)
    if cut:
        request.cancel()
    client.left.set()
    await asyncio.wait([request], timeout=5)
    assert request.done()
    return await row_of(api, "ann")


PATHS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": HI}),
    ("/v1/responses", {"input": "Why is the sky blue?"}),
]


@pytest.mark.parametrize(("path", "body"), PATHS)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("cut", [False, True])
def test_before_anything_came(api: Api, path: str, body: dict[str, Any], stream: bool, cut: bool) -> None:
    api.engine.stalls_after = 0
    client = Client(api, path, {**body, "user": "ann", "stream": stream})
    row = asyncio.run(row_of_who_leaves(api, client, lambda: bool(api.engine.asked), cut))
    assert (row.status, row.text, api.engine.stopped) == ("aborted", "", 1)


@pytest.mark.parametrize(("path", "body"), PATHS)
@pytest.mark.parametrize("cut", [False, True])
def test_in_mid_stream(api: Api, path: str, body: dict[str, Any], cut: bool) -> None:
    api.engine.stalls_after = 2
    client = Client(api, path, {**body, "user": "ann", "stream": True})

    def spoke() -> bool:
        return any(b" sky" in message.get("body", b"") for message in client.sent)

    row = asyncio.run(row_of_who_leaves(api, client, spoke, cut))
    assert (row.status, row.text, api.engine.stopped) == ("aborted", "The sky", 1)


def test_of_a_whole_answer_that_has_come_but_not_ended(api: Api) -> None:
    """Which is no failure of who answered: a test between versions counts those."""
    api.engine.ends_s = 5
    client = Client(api, "/v1/chat/completions", {"messages": HI, "user": "ann"})
    row = asyncio.run(row_of_who_leaves(api, client, lambda: bool(api.engine.asked), cut=True, after_s=0.1))
    assert (row.status, row.text, api.engine.stopped) == ("aborted", "The sky is blue.", 1)


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


def with_keys(api: Api, *names: str) -> list[dict[str, str]]:
    with api.store.write() as tx:
        made = [keys.create(tx, name, [Scope.CHAT], False, api.config.salt, time.time())[1] for name in names]
    api.door.viewer.refresh()
    return [{"authorization": f"Bearer {key}"} for key in made]


def serving(store: Store, folder: Path, **limits: int) -> Api:
    config = Config.model_validate({"home": str(folder), "limits": limits})
    engine = StandIn()
    app = build(config, store, engine.generate)
    return Api(local(app), store, engine, config, app.state.door)


@pytest.mark.parametrize(("path", "body"), PATHS)
def test_bodies_that_never_come_hold_up_no_chat(
    sqlite_store: Store, tmp_path: Path, path: str, body: dict[str, Any]
) -> None:
    api = serving(sqlite_store, tmp_path, chats_at_once=1, chats_in_all=2)
    one, other = with_keys(api, "a", "b")

    async def run() -> list[int | None]:
        slow = [Client(api, path, None, **key) for key in (one, one, one, other, other, other)]
        requests = [client.start() for client in slow]
        await asyncio.sleep(0.05)
        assert not any(client.sent for client in slow), "they are waited for"
        quick = [Client(api, path, body, **key) for key in (one, other)]
        for client in quick:
            await client.start()
        for client in slow:
            client.left.set()
        await asyncio.wait(requests, timeout=5)
        return [client.status for client in quick]

    assert asyncio.run(run()) == [200, 200]
    api.door.close()


def test_few_bodies_of_one_sender_are_on_their_way_at_once(
    sqlite_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kto_ray.serve.gateway.arriving.TURN_S", 0.1)
    api = serving(sqlite_store, tmp_path, bodies_at_once=2, bodies_in_all=3)
    one, two, three = with_keys(api, "a", "b", "c")
    path, body = PATHS[0]

    async def told(key: dict[str, str]) -> tuple[int | None, str]:
        client = Client(api, path, body, **key)
        await client.start()
        return client.status, client.sent[1]["body"].decode()

    async def run() -> None:
        slow = [Client(api, path, None, **one) for _ in range(2)]
        requests = [client.start() for client in slow]
        await asyncio.sleep(0.02)
        status, words = await told(one)
        assert status == 429 and "limits.bodies_at_once" in words
        assert (await told(two))[0] == 200
        slow.append(Client(api, path, None, **two))
        requests.append(slow[-1].start())
        await asyncio.sleep(0.02)
        status, words = await told(three)
        assert status == 503 and "limits.bodies_in_all" in words
        waiting = asyncio.create_task(told(one))
        await asyncio.sleep(0.02)
        slow[0].left.set()
        assert (await waiting)[0] == 200, "its turn came"
        for client in slow:
            client.left.set()
        await asyncio.wait(requests, timeout=5)

    asyncio.run(run())
    api.door.close()


def test_many_that_come_at_once_wait_their_turn(sqlite_store: Store, tmp_path: Path) -> None:
    """Who sends whole bodies meets no bound of those on their way."""
    api = serving(sqlite_store, tmp_path, bodies_at_once=1, bodies_in_all=1)
    [key] = with_keys(api, "a")
    path, body = PATHS[0]

    async def run() -> list[int | None]:
        clients = [Client(api, path, body, **key) for _ in range(50)]
        await asyncio.gather(*(client.start() for client in clients))
        return [client.status for client in clients]

    assert asyncio.run(run()) == [200] * 50
    api.door.close()
