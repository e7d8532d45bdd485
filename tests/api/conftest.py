"""The gateway's app in process: a real store, the stand-in of the engine, and a controller that steps."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from kto_ray.config import Config
from kto_ray.loop.step import Loop
from kto_ray.records.replicas import ReplicaReport
from kto_ray.serve.gateway.api import build
from kto_ray.serve.gateway.door import Door
from kto_ray.store import Store, replicas
from tests.support.engine import StandIn
from tests.support.local import local

HI = [{"role": "user", "content": "Why is the sky blue?"}]


@dataclass
class Api:
    client: TestClient
    store: Store
    engine: StandIn
    config: Config
    door: Door

    def chat(self, **body: Any) -> Any:
        return self.client.post("/v1/chat/completions", json={"messages": HI, **body})

    def say(self, completion_id: str, key: str | None = None, **body: Any) -> Any:
        headers = {"Idempotency-Key": key} if key else {}
        told = {"completion_id": completion_id, "kind": "thumb", "value": True, **body}
        return self.client.post("/v1/feedback", json=told, headers=headers)

    def holding(self, *held: str) -> None:
        """One live replica, which holds these adapters."""
        with self.store.write() as tx:
            replicas.report(tx, ReplicaReport("r", "node", 1, held), 15.0)
        self.door.viewer.refresh()


@pytest.fixture
def api(sqlite_store: Store, tmp_path: Path) -> Iterator[Api]:
    config = Config(home=str(tmp_path))
    engine = StandIn()
    app = build(config, sqlite_store, engine.generate)
    with local(app) as client:
        yield Api(client, sqlite_store, engine, config, app.state.door)


@pytest.fixture
def controller(api: Api) -> Iterator[None]:
    """The real loop, stepping; no round that it begins gets as far as Ray."""
    loop, done = Loop(api.config, policy=None), threading.Event()

    def run() -> None:
        while not done.wait(0.05):
            loop.step()

    thread = threading.Thread(target=run)
    thread.start()
    yield
    done.set()
    thread.join()
