"""What was deleted leaves the database's files too, while others go on using it."""

from __future__ import annotations

import logging
import sqlite3
import time

import sqlalchemy as sa

from kto_ray.store.database import Store
from kto_ray.store.schema import completions, feedback, labels

log = logging.getLogger(__name__)

PATIENCE_S = 60.0
POSTGRES_REMAINS = (
    "PostgreSQL: the rows are deleted and vacuumed; their bytes stand in free space of its files until that is used "
    "again, in its write-ahead log until that is recycled, and in backups as long as these are kept"
)


def scrub(store: Store) -> tuple[str, ...]:
    """Remove deleted rows from the files of the database; returns what of them remains where, in words.

    SQLite overwrites what it deletes (secure_delete), but not the copies that it left where it moved rows between
    pages, so the file is written anew: seconds a gigabyte, in which writers wait. Then the write-ahead log, which
    holds the pages of before, is emptied; a reader in the middle of a transaction stands in the way of that.
    """
    return _sqlite(store) if store.sqlite else _postgres(store)


def _sqlite(store: Store) -> tuple[str, ...]:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        said = _rewrite(store)
        if said is None:
            return ()
        if time.monotonic() > deadline:
            log.error("the files of the database may still hold what was erased: %s", said)
            return (f"SQLite: its files may still hold the text, for they could not be written anew: {said}",)
        time.sleep(0.2)


def _rewrite(store: Store) -> str | None:
    """What stood in the way, if anything."""
    connection = store.engine.raw_connection()
    try:
        cursor = connection.cursor()
        cursor.execute("VACUUM")
        cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        [(busy, _, _)] = cursor.fetchall()
        return "a reader keeps the write-ahead log open" if busy else None
    except sqlite3.OperationalError as error:  # locked, or no room for the copy
        return str(error)
    finally:
        connection.close()


def _postgres(store: Store) -> tuple[str, ...]:
    try:
        with store.engine.connect() as connection:
            outside = connection.execution_options(isolation_level="AUTOCOMMIT")
            for table in (labels, feedback, completions):
                outside.exec_driver_sql(f"VACUUM {table.name}")
    except sa.exc.OperationalError as error:  # it takes longer than a statement may
        log.warning("vacuum is left to the server's own: %s", error.orig)
    return (POSTGRES_REMAINS,)
