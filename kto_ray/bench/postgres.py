"""A PostgreSQL server of a benchmark's or a test's own, on loopback and on an empty folder, as it comes: it syncs."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sa


def binaries() -> Path | None:
    """Where an installed server's programs are."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).parent if on_path else None


class Server:
    """A server that can be killed and started again."""

    def __init__(self, programs: Path, folder: str) -> None:
        self._programs, self._folder = programs, folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "cwd": "/", "check": True}
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            nobody = pwd.getpwnam("nobody")
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
            self._quiet["user"] = "nobody"
        self._run("initdb", "-D", self._data, "-U", "kto", "-A", "trust")

    @property
    def _data(self) -> str:
        return f"{self._folder}/data"

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://kto@127.0.0.1:{self._port}/postgres"

    def start(self) -> None:
        options = f"-p {self._port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self._folder}"
        self._run("pg_ctl", "-D", self._data, "-o", options, "-l", f"{self._folder}/log", "-w", "start")

    def kill(self) -> None:
        """kill -9 of all its processes; what it has acknowledged is on the disk."""
        head = int(Path(self._data, "postmaster.pid").read_text().split()[0])
        children = Path(f"/proc/{head}/task/{head}/children").read_text().split()
        for pid in (head, *map(int, children)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        while any(Path(f"/proc/{pid}").exists() for pid in (head, *children)):
            time.sleep(0.01)

    def stop(self) -> None:
        self._run("pg_ctl", "-D", self._data, "-m", "immediate", "-w", "stop")

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run([str(self._programs / program), *arguments], **self._quiet)

    def empty(self, name: str) -> str:
        """The URL of a database of this name, made anew."""
        engine = sa.create_engine(self.url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(sa.text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
            connection.execute(sa.text(f"CREATE DATABASE {name}"))
        engine.dispose()
        return sa.make_url(self.url).set(database=name).render_as_string(hide_password=False)


@contextmanager
def server() -> Iterator[Server]:
    """Raises:
    ValueError: no PostgreSQL is installed.
    """
    programs = binaries()
    if programs is None:
        raise ValueError("no PostgreSQL server is installed (initdb is neither in /usr/lib/postgresql nor on the path)")
    with tempfile.TemporaryDirectory() as folder:
        started = Server(programs, folder)
        started.start()
        try:
            yield started
        finally:
            started.stop()
