"""Opening the system of record: SQLite (WAL, synchronous=FULL) when embedded, PostgreSQL beyond one machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config as AlembicConfig
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.pool import ConnectionPoolEntry

from kto_ray.paths import make_private
from kto_ray.store import tallies
from kto_ray.store.schema import compatibility

MIGRATIONS = Path(__file__).parent / "migrations"


class Store:
    """A handle on the database. Open one a process; it holds a pool and is safe to use from threads.

    Queries are plain functions in this package's modules; they take the connection of a transaction, so that a caller
    can change several things atomically:

        with store.write() as tx:
            adapters.insert(tx, version)
            rounds.update(tx, round)
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.sqlite = url.startswith("sqlite")
        if self.sqlite:
            database = sa.make_url(url).database
            if not database or database == ":memory:":
                raise ValueError(
                    f"store_url is {url!r}: the store must survive its process; name a file or a PostgreSQL URL"
                )
            make_private(os.path.dirname(os.path.abspath(database)))
            os.close(os.open(database, os.O_RDWR | os.O_CREAT, 0o600))  # its WAL gets the same mode
            self.engine = sa.create_engine(url, connect_args={"timeout": 30, "check_same_thread": False})
            sa.event.listen(self.engine, "connect", _sqlite_connect)
            sa.event.listen(self.engine, "begin", _sqlite_begin)
        else:
            self.engine = sa.create_engine(url, pool_pre_ping=True, pool_size=8, max_overflow=8)

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """One transaction, committed durably when the block ends without an error."""
        with self.engine.connect() as connection:
            connection = connection.execution_options(kto_write=True)
            with connection.begin(), tallies.gathered(connection):
                yield connection

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A consistent view for reading."""
        with self.engine.connect() as connection, connection.begin():
            yield connection

    def migrate(self) -> None:
        """Bring the schema to the version of this program; of several processes at once, one does it.

        Raises:
            ValueError: a newer program has changed the schema so that this one cannot use it.
        """
        config = AlembicConfig()
        config.set_main_option("script_location", str(MIGRATIONS))
        known = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]  # newest first
        with self.read() as tx:
            found = MigrationContext.configure(tx).get_current_revision()
            if found is not None and found not in known:
                _refuse_unless_compatible(tx, found, known[0])
                return
        if found == known[0]:
            return
        with self.engine.connect() as connection:
            connection = connection.execution_options(kto_write=True)
            with connection.begin():
                if not self.sqlite:
                    connection.execute(sa.text("SELECT pg_advisory_xact_lock(7150431)"))
                config.attributes["connection"] = connection
                command.upgrade(config, "head")

    def close(self) -> None:
        self.engine.dispose()


def _refuse_unless_compatible(tx: sa.Connection, found: str, newest: str) -> None:
    oldest = str(tx.execute(sa.select(compatibility.c.oldest)).scalar_one())
    if oldest > newest:
        raise ValueError(
            f"its schema is {found}, of a newer kto_ray, and programs before {oldest} cannot use it (this one knows "
            f"{newest}); run the newer version, or restore the database of before"
        )


def open_store(url: str) -> Store:
    """Open a store and migrate it.

    Raises:
        ValueError: the database cannot be reached or opened; the message names the URL (without its password).
    """
    try:
        store = Store(url)
        store.migrate()
    except (sa.exc.DatabaseError, sa.exc.ArgumentError, sa.exc.NoSuchModuleError, OSError) as error:
        shown = sa.make_url(url).render_as_string(hide_password=True) if "://" in url else url
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"store_url {shown!r} cannot be opened: {reason}; check that the server runs and the path is writable"
        ) from error
    return store


def _sqlite_connect(connection: Any, _: ConnectionPoolEntry) -> None:
    # pysqlite would open transactions by itself, and only as readers: two writers that then upgrade would deadlock.
    connection.isolation_level = None
    cursor = connection.cursor()
    # secure_delete: erased text is overwritten, not left in free pages.
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=30000", "secure_delete=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _sqlite_begin(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get("kto_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
