"""Opening the system of record: SQLite (WAL, synchronous=FULL) when embedded, PostgreSQL beyond one machine.

Whatever a database does, refuse, hang or hold a lock, a caller learns it in bounded time: see `Patience`.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config as AlembicConfig
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.pool import ConnectionPoolEntry

from kto_ray.config import Config
from kto_ray.paths import make_private
from kto_ray.store import tallies
from kto_ray.store.faults import first_line
from kto_ray.store.schema import compatibility

log = logging.getLogger(__name__)

MIGRATIONS = Path(__file__).parent / "migrations"

POOL_S = 10.0  # that a thread waits for one of them
CONNECT_S = 3  # psycopg takes whole seconds
STARTED_S, AGAIN_S = 600.0, 2.0  # that a service's process waits for its store, and between two looks
SLACK_S = 2.0  # that the server has to tell of its own timeout, before a client calls it silent
KEEPALIVE_S, KEEPALIVES = 5, 3  # probes of an idle TCP connection, and how many may be lost
UNSENT_S = 10  # that sent data may wait for TCP's acknowledgement


_CREATING = threading.Lock()


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a statement may take, and how long it may wait for another's lock; and how many connections stay open,
    to write and to read, with as many again in a rush.

    PostgreSQL ends what takes longer; where it does not even say so, our side closes the connection. SQLite has but the
    lock to wait for.
    """

    statement_s: float
    lock_s: float
    writers: int = 2
    readers: int = 4


WORK = Patience(statement_s=120, lock_s=30, readers=2)  # the loop, replicas, commands, jobs
# Where a user waits; what the store does not take, the spool does.
DOOR = Patience(statement_s=5, lock_s=3)


class Store:
    """A handle on the database. Open one a process; it holds a pool and is safe to use from threads.

    Queries are plain functions in this package's modules; they take the connection of a transaction, so that a caller
    can change several things atomically:

        with store.write() as tx:
            adapters.insert(tx, version)
            rounds.update(tx, round)
    """

    def __init__(self, url: str, patience: Patience = WORK) -> None:
        self.url = url
        self.sqlite = url.startswith("sqlite")
        if self.sqlite:
            database = sa.make_url(url).database
            if not database or database == ":memory:":
                raise ValueError(
                    f"store_url is {url!r}: the store must survive its process; name a file or a PostgreSQL URL"
                )
            make_private(os.path.dirname(os.path.abspath(database)))
            _create_private(database)
        # Two pools: readers in a rush take no connection from what must be written.
        sizes = (patience.writers, patience.readers)
        self.engine, self._readers = (_engine(url, self.sqlite, patience, size) for size in sizes)

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
        with self._readers.connect() as connection, connection.begin():
            yield connection

    def migrate(self) -> None:
        """Bring the schema to the version of this program; of several processes at once, one does it.

        Raises:
            ValueError: a newer program has changed the schema so that this one cannot use it.
        """
        if self.is_migrated():
            return
        config = _alembic()
        with self.engine.connect() as connection:
            connection.detach()  # it loses its limits, and is not for the pool
            connection = connection.execution_options(kto_write=True)
            with connection.begin():
                if not self.sqlite:
                    _without_limits(connection)  # it takes as long as there are rows
                    connection.execute(sa.text("SELECT pg_advisory_xact_lock(7150431)"))
                config.attributes["connection"] = connection
                command.upgrade(config, "head")

    def is_migrated(self) -> bool:
        """Whether this program can use the schema as it is: it is of this version, or of a newer one that allows it.

        Raises:
            ValueError: a newer program has changed the schema so that this one cannot use it.
        """
        known = revisions()
        with self.read() as tx:
            found = MigrationContext.configure(tx).get_current_revision()
            if found is not None and found not in known:
                _refuse_unless_compatible(tx, found, known[0])
                return True
        return found == known[0]

    def close(self) -> None:
        self.engine.dispose()
        self._readers.dispose()


def revisions() -> list[str]:
    """The versions of the schema that this program knows, newest first."""
    return [script.revision for script in ScriptDirectory.from_config(_alembic()).walk_revisions()]


def _alembic() -> AlembicConfig:
    config = AlembicConfig()
    config.set_main_option("script_location", str(MIGRATIONS))
    return config


def _refuse_unless_compatible(tx: sa.Connection, found: str, newest: str) -> None:
    oldest = str(tx.execute(sa.select(compatibility.c.oldest)).scalar_one())
    if oldest > newest:
        raise ValueError(
            f"its schema is {found}, of a newer kto_ray, and programs before {oldest} cannot use it (this one knows "
            f"{newest}); run the newer version, or restore the database of before"
        )


class CannotOpen(ValueError):
    """The database cannot be reached, or is not ready yet."""


def open_store(url: str, patience: Patience = WORK, migrate: bool = True) -> Store:
    """Open a store, and migrate it.

    Raises:
        CannotOpen: the database cannot be reached or opened, or it was to be migrated already and is not; the message
            names the URL (without its password).
        ValueError: the URL is none, or its schema is one of a newer program that this one cannot use.
    """
    try:
        store = Store(url, patience)
        if migrate:
            store.migrate()
        elif not store.is_migrated():
            words = f"its schema is older than {revisions()[0]}, this program's; run `kto-ray migrate`"
            raise CannotOpen(f"store_url {_shown(url)!r} is not ready: {words}")
    except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError) as error:
        raise ValueError(f"store_url {_shown(url)!r} cannot be opened: {first_line(error)}; mend the URL") from error
    except (sa.exc.DatabaseError, OSError) as error:
        words = f"{first_line(error)}; check that the server runs and the path is writable"
        raise CannotOpen(f"store_url {_shown(url)!r} cannot be opened: {words}") from error
    return store


def store_of(config: Config, patience: Patience = WORK, wait_s: float = 0.0) -> Store:
    """Open the store of a config, once it is there. Embedded, whoever is first migrates it; elsewhere that is a step of
    its own (`kto-ray migrate`), by whoever may.

    Raises:
        CannotOpen: it is not there after `wait_s` seconds.
        ValueError: as `open_store`.
    """
    return awaited(lambda: open_store(config.database_url, patience, migrate=config.embedded), wait_s)


def awaited(opened: Callable[[], Store], wait_s: float) -> Store:
    """A store that may not be there yet.

    Raises:
        CannotOpen: nor is it after `wait_s` seconds.
    """
    until, told = time.monotonic() + wait_s, ""
    while True:
        try:
            return opened()
        except CannotOpen as error:
            if time.monotonic() >= until:
                raise
            if str(error) != told:
                log.warning("waiting: %s", error)
            told = str(error)
        time.sleep(AGAIN_S)


def _shown(url: str) -> str:
    return sa.make_url(url).render_as_string(hide_password=True) if "://" in url else url


def _engine(url: str, sqlite: bool, patience: Patience, size: int) -> sa.Engine:
    """Errors carry no parameters: these are what users wrote, and errors are logged."""
    pool: dict[str, Any] = {"pool_size": size, "max_overflow": size, "pool_timeout": POOL_S, "hide_parameters": True}
    if sqlite:
        engine = sa.create_engine(url, connect_args={"timeout": patience.lock_s, "check_same_thread": False}, **pool)
        sa.event.listen(engine, "connect", _sqlite_connect)
        sa.event.listen(engine, "begin", _sqlite_begin)
        return engine
    engine = sa.create_engine(url, connect_args=_postgres_arguments(url, patience), pool_pre_ping=True, **pool)

    @sa.event.listens_for(engine, "do_connect")
    def _connect(_: Any, __: Any, arguments: Any, named: Any) -> Any:
        from kto_ray.store.silence import Connection  # psycopg, which SQLite does without

        connection = Connection.connect(*arguments, **named)
        connection.silence_s = patience.statement_s + SLACK_S
        return connection

    return engine


def _create_private(database: str) -> None:
    """Make the file where there is none; its WAL gets the same mode.

    One that is there is not even opened: to close it would let go of every lock that this process holds on it through
    SQLite, and the next process would take the log of living connections for one that nobody uses
    (https://www.sqlite.org/howtocorrupt.html, 2.2).
    """
    with _CREATING, suppress(FileExistsError):
        os.close(os.open(database, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))


def _postgres_arguments(url: str, patience: Patience) -> dict[str, Any]:
    """libpq's, in its units. What the URL itself says of them comes first."""
    limits = {
        "statement_timeout": patience.statement_s,
        "lock_timeout": patience.lock_s,
        # A process that stands still in a transaction must not hold its locks for ever.
        "idle_in_transaction_session_timeout": 5 * patience.statement_s,
    }
    told = sa.make_url(url).query
    defaults = {
        "connect_timeout": CONNECT_S,
        "keepalives_idle": KEEPALIVE_S,
        "keepalives_interval": KEEPALIVE_S,
        "keepalives_count": KEEPALIVES,
        "tcp_user_timeout": UNSENT_S * 1000,
    }
    options = " ".join(f"-c {name}={int(seconds * 1000)}" for name, seconds in limits.items())
    return {
        "options": f"{options} {told.get('options', '')}".strip(),
        **{name: value for name, value in defaults.items() if name not in told},
    }


def _without_limits(connection: sa.Connection) -> None:
    """For the rest of a transaction (PostgreSQL)."""
    connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
    connection.exec_driver_sql("SET LOCAL lock_timeout = 0")
    connection.connection.dbapi_connection.silence_s = None  # type: ignore[union-attr]


def _sqlite_connect(connection: Any, _: ConnectionPoolEntry) -> None:
    # pysqlite would open transactions by itself, and only as readers: two writers that then upgrade would deadlock.
    connection.isolation_level = None
    cursor = connection.cursor()
    # secure_delete: erased text is overwritten, not left in free pages.
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _sqlite_begin(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get("kto_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
