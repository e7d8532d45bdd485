"""Fixtures for all tests: stores on SQLite and on a real PostgreSQL, and where the shared data lies."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

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


def _postgres_bin() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).parent if on_path else None


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server of our own on loopback."""
    binaries = _postgres_bin()
    if binaries is None:
        pytest.skip("no PostgreSQL server is installed")
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        # PostgreSQL refuses to run as root.
        user = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        if user:
            os.chown(folder, user.pw_uid, user.pw_gid)
        as_user: dict[str, Any] = {"user": "nobody"} if user else {}
        data = f"{folder}/data"
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "cwd": "/"}
        subprocess.run([binaries / "initdb", "-D", data, "-U", "kto", "-A", "trust"], check=True, **quiet, **as_user)
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
        log = f"{folder}/log"
        start: list[Any] = [binaries / "pg_ctl", "-D", data, "-o", options, "-l", log, "-w", "start"]
        subprocess.run(start, check=True, **quiet, **as_user)
        try:
            yield f"postgresql+psycopg://kto@127.0.0.1:{port}/postgres"
        finally:
            subprocess.run(
                [binaries / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop"], check=True, **quiet, **as_user
            )


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """An empty store, once on each database."""
    if request.param == "sqlite":
        opened = open_store(f"sqlite:///{tmp_path}/kto.db")
    else:
        opened = open_store(_fresh_database(request.getfixturevalue("postgres"), tmp_path.name))
    yield opened
    opened.close()


def _fresh_database(url: str, name: str) -> str:
    database = "t_" + "".join(c if c.isalnum() else "_" for c in name.lower())
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(f"DROP DATABASE IF EXISTS {database}"))
        connection.execute(sa.text(f"CREATE DATABASE {database}"))
    engine.dispose()
    return sa.make_url(url).set(database=database).render_as_string(hide_password=False)


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
