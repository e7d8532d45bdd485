"""The crowd against the gateway's app: what it counts is what the store holds."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kto_ray.config import Config, load_config
from kto_ray.people.crowd import Crowd
from kto_ray.people.tastes import TASTES, Habits
from kto_ray.people.turns import DemoStopped, Sampling
from kto_ray.store import Store, tallies
from tests.conftest import FreePort
from tests.support.engine import StandIn
from tests.support.served import served


@pytest.fixture
def config(tmp_path: Path, free_port: FreePort) -> Config:
    return load_config(None, (f"home={tmp_path}", f"http.port={free_port()}"))


async def visit(url: str, users: int, chats: int) -> Crowd:
    async with Crowd(url, "policy", TASTES["short"], 0, Sampling(), Habits(), resend=0.5, streaming=0.5) as crowd:
        await crowd.run("before", 4, chats, users, asyncio.Event())
        return crowd


def test_what_a_crowd_says_is_stored_once(config: Config, sqlite_store: Store) -> None:
    with served(config, sqlite_store, StandIn()) as url:
        crowd = asyncio.run(visit(url, users=10, chats=3))
    with sqlite_store.read() as tx:
        stored = tallies.total(tx)
    assert stored.completions == crowd.tally.chat == len(crowd.turns) == 30
    assert stored.stored == crowd.tally.thumbs_sent + crowd.tally.edits_sent
    assert crowd.tally.resent == crowd.tally.duplicates > 0
    assert stored.pending == 0 and 0 < crowd.tally.streamed < 30
    assert len(crowd.judgements("before")) <= 10 and crowd.judgements("after") == []


def test_a_crowd_that_is_refused_gives_up(config: Config, sqlite_store: Store) -> None:
    engine = StandIn()
    engine.refusal = {"message": "no", "code": 400, "param": None, "type": "bad"}
    with served(config, sqlite_store, engine) as url, pytest.raises(DemoStopped, match="no"):
        asyncio.run(visit(url, users=60, chats=1))
