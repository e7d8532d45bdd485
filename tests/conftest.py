"""Fixtures for all tests: stores on SQLite and on a real PostgreSQL, and where the shared data lies."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kto_ray.bench.postgres import Server, binaries, server
from kto_ray.store import Store, open_store

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of data and schemas that lie beside the project, not in it."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED.name}/ with the data and schemas is not beside the project")
    return SHARED


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """A PostgreSQL server of our own on loopback."""
    if binaries() is None:
        pytest.skip("no PostgreSQL server is installed")
    with server() as started:
        yield started


@pytest.fixture(scope="session")
def postgres(postgres_server: Server) -> str:
    """Its URL."""
    return postgres_server.url


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """An empty store, once on each database."""
    if request.param == "sqlite":
        opened = open_store(f"sqlite:///{tmp_path}/kto.db")
    else:
        name = "t_" + "".join(c if c.isalnum() else "_" for c in tmp_path.name.lower())
        opened = open_store(request.getfixturevalue("postgres_server").empty(name))
    yield opened
    opened.close()


@pytest.fixture
def sqlite_store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(f"sqlite:///{tmp_path}/kto.db")
    yield opened
    opened.close()


FreePort = Callable[[], int]


@pytest.fixture(scope="session")
def free_port() -> FreePort:
    def pick() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    return pick
