"""The store is gone, locked or hanging: chat and feedback go on, are durable in the spool, and come to it when it is
back; and slow reads hold no answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from kto_ray.config import Config
from kto_ray.serve.gateway.api import build
from kto_ray.serve.gateway.door import READS_WAITING, Door
from kto_ray.store import Store, completions, feedback, open_store, writer
from kto_ray.store.database import DOOR, SLACK_S, Patience
from tests.support.engine import StandIn
from tests.support.local import local
from tests.support.network import Proxy, proxied
from tests.support.rows import completion

HASTY = Patience(statement_s=0.5, lock_s=0.2)
HI = [{"role": "user", "content": "Why is the sky blue?"}]


@dataclass
class Gate:
    client: TestClient
    door: Door
    engine: StandIn
    proxy: Proxy | None = None

    def chat(self, stream: bool = False) -> str:
        """The id of an answer that has ended well."""
        told = self.client.post("/v1/chat/completions", json={"messages": HI, "stream": stream})
        assert told.status_code == 200, told.text
        assert not stream or told.text.endswith("data: [DONE]\n\n"), told.text
        return told.headers["x-kto-completion-id"]

    def thumb(self, completion_id: str, key: str | None = None) -> tuple[int, str]:
        body = {"completion_id": completion_id, "kind": "thumb", "value": True}
        headers = {"Idempotency-Key": key} if key else {}
        told = self.client.post("/v1/feedback", json=body, headers=headers)
        return told.status_code, told.json()["status"]

    def stored(self, completion_id: str, events: int, within_s: float = 10) -> bool:
        """Whether the store comes to hold the answer and so many events on it."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            with self.door.store.read() as tx:
                found = completions.get(tx, completion_id), feedback.events(tx, completion_id)
            if found[0] is not None and found[0].status == "complete" and len(found[1]) == events:
                return True
            time.sleep(0.05)
        return False


@contextmanager
def gate(store: Store, home: Path, proxy: Proxy | None = None) -> Iterator[Gate]:
    engine = StandIn()
    app = build(Config(home=str(home)), store, engine.generate)
    with local(app) as client:
        yield Gate(client, app.state.door, engine, proxy)


@pytest.fixture
def locked(sqlite_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """A gateway on a SQLite store that another process may lock."""
    monkeypatch.setattr(writer, "RETRY_S", 0.05)
    store = open_store(sqlite_store.url, HASTY)
    with gate(store, tmp_path) as made:
        yield made
    store.close()


@pytest.fixture
def hanging(postgres: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """A gateway on a PostgreSQL store, which may hang."""
    monkeypatch.setattr(writer, "RETRY_S", 0.05)
    at = sa.make_url(store.url)
    assert at.host is not None and at.port is not None
    with proxied(at.host, at.port) as proxy:
        url = at.set(port=proxy.port).render_as_string(hide_password=False)
        opened = open_store(url, HASTY)
        with gate(opened, tmp_path, proxy) as made:
            yield made
        opened.close()


@pytest.mark.parametrize("stream", [False, True])
def test_a_locked_store_costs_no_answer_and_no_thumb(locked: Gate, sqlite_store: Store, stream: bool) -> None:
    with sqlite_store.write():
        name = locked.chat(stream)
        assert locked.thumb(name) == (202, "pending")
        ready = locked.client.get("/readyz").json()
        assert ready["spooled"] == 2
        assert "kto_ray_spool_entries 2.0" in locked.client.get("/metrics").text
        assert locked.client.delete("/v1/feedback/fb-x").status_code == 503
    assert locked.stored(name, events=1)
    assert locked.thumb(name)[0] in (201, 202)


def test_what_waits_in_the_spool_is_not_withdrawn_and_not_said_to_be_unknown(
    locked: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*_: object) -> bool:
        raise OSError("slow")

    name, spooled = locked.chat(), locked.door.writer._spool
    assert spooled is not None
    with monkeypatch.context() as patch:
        patch.setattr(writer, "drain_one", slow)
        spooled.append([completion("left")])  # it is behind
        body = {"completion_id": name, "kind": "thumb", "value": True}
        said = locked.client.post("/v1/feedback", json=body)
        assert said.status_code == 202
        path = f"/v1/feedback/{said.json()['feedback_id']}"
        told = locked.client.delete(path)
        assert told.status_code == 503 and told.headers["retry-after"] == "1"
        assert "2 acknowledged entries still wait for; try again" in told.json()["error"]["message"]
    assert locked.stored(name, events=1)
    assert locked.client.delete(path).status_code == 200
    assert locked.client.delete("/v1/feedback/fb-x").status_code == 404


@pytest.mark.parametrize("store", ["postgresql"], indirect=True)
def test_a_store_that_hangs_costs_no_answer_and_no_thumb(hanging: Gate) -> None:
    first = hanging.chat()
    assert hanging.proxy is not None
    hanging.proxy.hang()
    began = time.monotonic()
    name = hanging.chat(stream=True)
    assert time.monotonic() - began < 3 * (HASTY.statement_s + SLACK_S) + 6  # found out once
    began = time.monotonic()
    assert hanging.thumb(name, "k") == (202, "pending")
    other = hanging.chat()
    assert time.monotonic() - began < 1, "it is known that the store is away"
    hanging.proxy.flow()
    assert hanging.stored(name, events=1, within_s=20) and hanging.stored(other, events=0)
    assert hanging.stored(first, events=0)


def test_a_store_that_is_gone_is_told_by_what_needs_it(locked: Gate, tmp_path: Path) -> None:
    locked.door.store.close()
    (tmp_path / "kto.db").rename(tmp_path / "away.db")
    (tmp_path / "kto.db").mkdir()
    told = locked.client.get("/v1/loop")
    assert told.status_code == 503 and "store cannot be reached" in told.json()["error"]["message"]
    name = locked.chat()
    assert "kto_ray_store_up 0.0" in locked.client.get("/metrics").text
    (tmp_path / "kto.db").rmdir()
    (tmp_path / "away.db").rename(tmp_path / "kto.db")
    assert locked.stored(name, events=0)
    assert "kto_ray_store_up 1.0" in locked.client.get("/metrics").text


def test_what_a_gateway_left_in_its_spool_the_next_one_brings_to_the_store(sqlite_store: Store, tmp_path: Path) -> None:
    store = open_store(sqlite_store.url, HASTY)
    with sqlite_store.write(), gate(store, tmp_path) as first:
        name = first.chat()
        first.thumb(name)
    with gate(store, tmp_path) as second:
        assert second.stored(name, events=1)
    store.close()


def test_a_full_disk_under_spool_and_store_is_told_and_no_end_is_shown(
    locked: Gate, sqlite_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with sqlite_store.write():
        monkeypatch.setattr("kto_ray.store.spool.os.write", full)
        told = locked.client.post("/v1/chat/completions", json={"messages": HI})
        assert told.status_code == 503 and "No space left" in told.json()["error"]["message"]
        assert told.headers["retry-after"] == "1"
        streamed = locked.client.post("/v1/chat/completions", json={"messages": HI, "stream": True})
        assert (
            "No space left" in streamed.text
            and "[DONE]" not in streamed.text
            and 'finish_reason": "stop' not in streamed.text
        )
        body = {"completion_id": "c", "kind": "thumb", "value": True}
        assert locked.client.post("/v1/feedback", json=body).status_code == 503
        monkeypatch.undo()


def test_slow_reads_hold_no_answer_and_do_not_pile_up(locked: Gate) -> None:
    leave = threading.Event()
    portal = locked.client.portal
    assert portal is not None
    arguments = (locked.door.aside, leave.wait)
    slow = [threading.Thread(target=portal.call, args=arguments) for _ in range(DOOR.readers + READS_WAITING)]
    for thread in slow:
        thread.start()
    while locked.door._reads < DOOR.readers + READS_WAITING:
        time.sleep(0.01)
    name = locked.chat(stream=True)
    assert locked.thumb(name) == (201, "recorded")
    told = locked.client.get("/v1/loop")
    assert told.status_code == 503 and told.headers["retry-after"] == "1"
    leave.set()
    for thread in slow:
        thread.join()
    assert locked.client.get("/v1/loop").status_code == 200


def test_a_page_that_many_ask_for_is_read_once_at_a_time_and_never_older_than_the_question(locked: Gate) -> None:
    asked: list[int] = []
    go = threading.Event()

    def count(_: sa.Connection) -> int:
        asked.append(1)
        go.wait(5)
        return len(asked)

    page = locked.door.page(count)
    portal = locked.client.portal
    assert portal is not None
    told: list[int] = []
    first = threading.Thread(target=lambda: told.append(portal.call(page)))
    first.start()
    while not asked:
        time.sleep(0.01)
    rest = [threading.Thread(target=lambda: told.append(portal.call(page))) for _ in range(20)]
    for thread in rest:
        thread.start()
    time.sleep(0.2)
    go.set()
    for thread in (first, *rest):
        thread.join()
    assert sorted(told) == [1] + [2] * 20


def test_the_view_is_read_again_whatever_went_wrong(locked: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr("kto_ray.serve.gateway.view.readiness", broken)
        time.sleep(1.2)
        assert locked.client.get("/readyz").json()["view_age_s"] > 1
    time.sleep(1.2)
    assert locked.client.get("/readyz").json()["view_age_s"] < 1
