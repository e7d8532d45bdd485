"""The gateway's app with the stand-in of the engine, served over HTTP from a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from kto_ray.config import Config
from kto_ray.records.replicas import ReplicaReport
from kto_ray.serve.gateway.api import build
from kto_ray.store import Store, replicas
from tests.support.engine import StandIn


@contextmanager
def served(config: Config, store: Store, engine: StandIn) -> Iterator[str]:
    """Yields the base URL; one live replica holds the base model."""
    with store.write() as tx:
        replicas.report(tx, ReplicaReport("r", "node", 1, ()), 15.0)
    app = build(config, store, engine.generate)
    server = uvicorn.Server(uvicorn.Config(app, config.http.host, config.http.port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.02)
        yield f"http://{config.http.host}:{config.http.port}"
    finally:
        server.should_exit = True
        thread.join()
