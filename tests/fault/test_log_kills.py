"""kill -9 of the gateway, of PostgreSQL and of the spool's drain at random points under load, and a client that keeps a
ledger: nothing acknowledged is lost or doubled, and every answer whose end it saw is stored.

LOG_KILLS sets how many kills there are on each database.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from kto_ray.bench.postgres import Server
from kto_ray.store import Store, schema, spool, tallies
from kto_ray.store.tallies import Tally
from tests.support.gateway import ROOT, Gateway
from tests.support.rows import completion, thumb

pytestmark = [pytest.mark.fault, pytest.mark.timeout(3600)]

KILLS = int(os.environ.get("LOG_KILLS", "110"))
CLIENTS = 6
ENTRIES = 4000  # answers in a spool, each with a thumb


@dataclass
class Ledger:
    """What clients were told. `thumbs`: by idempotency key, the id that was acknowledged."""

    ended: set[str] = field(default_factory=set)  # answers whose end was seen
    thumbs: dict[str, str] = field(default_factory=dict)
    sent: set[str] = field(default_factory=set)  # every key, acknowledged or not
    failures: list[str] = field(default_factory=list)


class Client:
    """Chats and judges until it is told to stop; a thumb is sent again, under its key, until it is acknowledged."""

    def __init__(self, url: str, name: str, ledger: Ledger, done: threading.Event) -> None:
        self._http = httpx.Client(base_url=url, timeout=30)
        self._name, self._ledger, self._done = name, ledger, done
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def join(self) -> None:
        self._thread.join()
        self._http.close()

    def _run(self) -> None:
        number = 0
        while not self._done.is_set():
            number += 1
            completion = self._chat(stream=number % 2 == 0)
            if completion is not None:
                self._ledger.ended.add(completion)
                self._judge(completion, f"{self._name}-{number}")
            self._done.wait(0.01)

    def _chat(self, stream: bool) -> str | None:
        """The id of an answer whose end came."""
        body = {"messages": [{"role": "user", "content": "Hi"}], "stream": stream, "user": self._name}
        try:
            told = self._http.post("/v1/chat/completions", json=body)
        except httpx.TransportError:
            time.sleep(0.02)
            return None
        if told.status_code != 200:
            self._note(told)
            return None
        if stream and not told.text.endswith("data: [DONE]\n\n"):
            return None
        return told.headers["x-kto-completion-id"]

    def _judge(self, completion: str, key: str) -> None:
        body = {"completion_id": completion, "kind": "thumb", "value": True, "user": self._name}
        self._ledger.sent.add(key)
        for _ in range(2000):
            try:
                told = self._http.post("/v1/feedback", json=body, headers={"Idempotency-Key": key})
            except httpx.TransportError:
                time.sleep(0.02)
                continue
            if told.status_code in (200, 201, 202):
                self._ledger.thumbs[key] = told.json()["feedback_id"]
                return
            self._note(told)
            time.sleep(0.02)
        self._ledger.failures.append(f"{key} is never acknowledged")

    def _note(self, told: httpx.Response) -> None:
        """A refusal is no fault while the store is away, if it says so in the contract's shape."""
        if told.status_code != 503 or "message" not in told.json()["error"]:
            self._ledger.failures.append(f"{told.status_code}: {told.text[:200]}")


@contextmanager
def load(url: str) -> Iterator[Ledger]:
    ledger, done = Ledger(), threading.Event()
    clients = [Client(url, f"client-{i}", ledger, done) for i in range(CLIENTS)]
    yield ledger
    done.set()
    for client in clients:
        client.join()


@contextmanager
def away(store: Store) -> Iterator[None]:
    """Another holds the store's lock, so that the spool fills."""
    with store.write() as tx:
        if not store.sqlite:
            tx.execute(sa.text("LOCK TABLE completions, feedback"))
        yield


def judged(store: Store, ledger: Ledger) -> None:
    """Hold the ledger against the store, once the spool is empty."""
    with store.read() as tx:
        answers = dict(tx.execute(sa.select(schema.completions.c.id, schema.completions.c.status)).all())
        events = tx.execute(sa.select(schema.feedback.c.idempotency_key, schema.feedback.c.completion_id)).all()
        slots = tx.execute(
            sa.select(*(sa.func.sum(schema.tallies.c[n]) for n in ("completions", "stored", "pending")))
        ).one()
    keys = [key for key, _ in events]
    assert ledger.failures == []
    assert [name for name in ledger.ended if answers.get(name) != "complete"] == [], "answers that were seen are lost"
    assert set(ledger.thumbs) - set(keys) == set(), "acknowledged events are lost"
    assert len(keys) == len(set(keys)), "events are doubled"
    assert set(keys) <= ledger.sent
    assert all(of is not None for _, of in events)
    assert tuple(map(int, slots)) == (len(answers), len(events), 0), "the totals are those of the rows"


def drained(gateway: Gateway, home: Path) -> None:
    """Once the gateway, which lives, has brought all spools to the store."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if not any((home / "spool").glob("*/*.log")):
            return
        time.sleep(0.1)
    raise AssertionError(f"the spool is not drained: {httpx.get(f'{gateway.url}/readyz').json()}")


def strike(chance: random.Random, gateway: Gateway, store: Store, server: Server | None) -> str:
    """One kill at a random point: of the gateway, of it while the store is away or while it drains, of PostgreSQL."""
    kind = chance.choice(["gateway", "away", "drain"] + (["postgres"] if server is not None else []))
    time.sleep(chance.uniform(0, 0.4))
    if kind == "postgres":
        assert server is not None
        server.kill()
        time.sleep(chance.uniform(0, 0.5))
        server.start()
        return kind
    if kind in ("away", "drain"):
        with away(store):
            time.sleep(chance.uniform(0.4, 1.0))
            if kind == "away":
                gateway.kill()
        time.sleep(chance.uniform(0, 0.15) if kind == "drain" else 0)  # into what it then brings to the store
    gateway.kill()
    gateway.start()
    return kind


def test_kills_lose_and_double_nothing(
    request: pytest.FixtureRequest, store: Store, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    server: Server | None = None if store.sqlite else request.getfixturevalue("postgres_server")
    chance = random.Random(KILLS)
    gateway = Gateway(store.url, tmp_path, free_port())
    gateway.start()
    gateway.wait()
    kinds: list[str] = []
    with load(gateway.url) as ledger:
        for _ in range(KILLS):
            kinds.append(strike(chance, gateway, store, server))
            gateway.wait()
            time.sleep(chance.uniform(0, 0.5))
    drained(gateway, tmp_path)
    gateway.stop()
    judged(store, ledger)
    told = {"kills": len(kinds), "answers": len(ledger.ended), "thumbs": len(ledger.thumbs)}
    print(json.dumps({**told, **{kind: kinds.count(kind) for kind in sorted(set(kinds))}}))
    assert len(ledger.thumbs) > KILLS


DRAIN = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from kto_ray.config import Config
from kto_ray.store import open_store
from kto_ray.store.spool import own
from kto_ray.store.writer import drain_one
store, spool = open_store({url!r}), own(Path({folder!r}))
print("begins", flush=True)
while drain_one(store, spool, Config().feedback):
    pass
print("done", flush=True)
"""


def test_a_drain_that_is_killed_again_and_again_brings_all_in_once(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "SEGMENT_BYTES", 50_000)
    filled = spool.own(tmp_path)
    for i in range(0, ENTRIES, 10):
        answers = [completion(f"c{n}", user=f"user-{n}") for n in range(i, i + 10)]  # one user's were a burst
        filled.append([*answers, *(thumb(f"f{answer.id}", answer.id, user=answer.user) for answer in answers)])
    filled.close()
    script = DRAIN.format(root=str(ROOT), url=store.url, folder=str(tmp_path))
    chance, kills, at_most_s = random.Random(KILLS), 0, 0.1
    while True:
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "begins\n"
        time.sleep(chance.uniform(0, at_most_s))
        process.kill()
        told = process.stdout.read()
        ended = process.wait()
        if told == "done\n":
            break
        assert ended == -signal.SIGKILL, "it failed by itself"
        kills += 1
        at_most_s *= 1.1  # a slow machine takes longer for its first entry
    with store.read() as tx:
        assert tallies.total(tx) == Tally(completions=ENTRIES, stored=ENTRIES, up=ENTRIES, came=ENTRIES)
        assert tx.execute(sa.select(sa.func.count()).select_from(schema.feedback)).scalar_one() == ENTRIES
    print(json.dumps({"kills": kills}))
    assert kills > 5
