"""A database that hangs, holds a lock or is gone: a named error in bounded time, and its text shows nobody's words."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from kto_ray.config import Config
from kto_ray.store import Store, adapters, completions, open_store, schema, store_of
from kto_ray.store.database import CONNECT_S, SLACK_S, WORK, CannotOpen, Patience, revisions
from tests.support.network import proxied
from tests.support.rows import completion

HASTY = Patience(statement_s=1, lock_s=0.5)


def through(url: str, port: int) -> str:
    return sa.make_url(url).set(port=port).render_as_string(hide_password=False)


def test_a_postgres_that_hangs_is_given_up(postgres: str) -> None:
    at = sa.make_url(postgres)
    assert at.host is not None and at.port is not None
    with proxied(at.host, at.port) as proxy:
        store = open_store(through(postgres, proxy.port), HASTY)
        with pytest.raises(sa.exc.OperationalError, match="did not answer for"), store.read() as tx:
            proxy.hang()
            began = time.monotonic()
            tx.execute(sa.text("SELECT 1"))
        assert time.monotonic() - began < HASTY.statement_s + SLACK_S + 1
        began = time.monotonic()
        with pytest.raises(sa.exc.OperationalError), store.write():  # an old connection, then a new one
            pass
        assert time.monotonic() - began < HASTY.statement_s + SLACK_S + 3 * CONNECT_S
        proxy.flow()
        with store.read() as tx:
            assert tx.execute(sa.text("SELECT 1")).scalar_one() == 1
        store.close()


def test_a_commit_that_is_not_answered_is_an_error(postgres: str) -> None:
    at = sa.make_url(postgres)
    assert at.host is not None and at.port is not None
    with proxied(at.host, at.port) as proxy:
        store = open_store(through(postgres, proxy.port), HASTY)
        with pytest.raises(sa.exc.OperationalError, match="did not answer for"), store.write() as tx:
            tx.execute(sa.text("SELECT 1"))
            proxy.hang()
        store.close()


def test_a_statement_and_a_lock_have_their_limits(postgres: str) -> None:
    store = open_store(postgres, HASTY)
    with pytest.raises(sa.exc.OperationalError, match="statement timeout"), store.read() as tx:
        tx.execute(sa.text("SELECT pg_sleep(30)"))
    with store.write() as tx:
        tx.execute(sa.text("LOCK TABLE leases"))
        with pytest.raises(sa.exc.OperationalError, match="lock timeout"), store.write() as other:
            other.execute(sa.text("LOCK TABLE leases"))
    store.close()


def test_a_locked_sqlite_is_given_up(sqlite_store: Store) -> None:
    hasty = open_store(sqlite_store.url, HASTY)
    with sqlite_store.write():
        began = time.monotonic()
        with pytest.raises(sa.exc.OperationalError, match="locked"), hasty.write():
            pass
        assert time.monotonic() - began < 5
    hasty.close()


def test_readers_in_a_rush_leave_the_writers_their_connections(store: Store) -> None:
    leave, reading = threading.Event(), threading.Semaphore(0)

    def read() -> None:
        with store.read():
            reading.release()
            leave.wait()

    threads = [threading.Thread(target=read) for _ in range(2 * WORK.readers)]
    for thread in threads:
        thread.start()
    for _ in threads:
        reading.acquire()
    with store.write() as tx:
        completions.insert(tx, completion())
    leave.set()
    for thread in threads:
        thread.join()


def test_an_error_shows_nobody_s_words(store: Store) -> None:
    with pytest.raises(sa.exc.IntegrityError) as error, store.write() as tx:
        tx.execute(schema.completions.insert().values(id="c1", text="my secret"))
    assert "my secret" not in str(error.value)


def beyond(store: Store, **more: Any) -> Config:
    """A config of several machines on that store; SQLite stands in for PostgreSQL."""
    return Config().model_copy(update={"store_url": store.url, "embedded": False, **more})


def test_beyond_one_machine_nobody_migrates_by_the_way(store: Store) -> None:
    """A service waits until somebody who may has done it, and a newer program's schema is as good."""
    config = beyond(store)
    with store.write() as tx:
        tx.exec_driver_sql("UPDATE alembic_version SET version_num = '0003'")
    with pytest.raises(CannotOpen, match=f"older than {revisions()[0]}.*kto-ray migrate"):
        store_of(config)

    def later(version: str) -> None:
        time.sleep(0.3)
        with store.write() as tx:
            tx.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{version}'")

    for version in (revisions()[0], "9999"):
        later("0003")
        step = threading.Thread(target=later, args=(version,))
        step.start()
        store_of(config, wait_s=10).close()
        step.join()


def test_a_service_waits_for_a_database_that_comes_up_second(postgres: str) -> None:
    at = sa.make_url(postgres)
    assert at.host is not None and at.port is not None
    with proxied(at.host, at.port) as proxy:
        config = Config(store_url=through(postgres, proxy.port))
        proxy.hang()
        with pytest.raises(CannotOpen, match="cannot be opened"):
            store_of(config)
        threading.Timer(1.0, proxy.flow).start()
        store_of(config, wait_s=30).close()


def test_what_the_server_refuses_is_no_silence(store: Store) -> None:
    """Also where it answers a pipeline of several rows, whose end is still to come."""
    for i in range(20):
        rows = [completion("bad", model=None), *(completion(f"c{i}-{n}") for n in range(20))]
        with pytest.raises(sa.exc.IntegrityError), store.write() as tx:
            completions.insert_all(tx, rows)
    with store.write() as tx:
        completions.insert(tx, completion())


@pytest.mark.parametrize("url", ["no url", "nosuch://host/db"])
def test_a_url_that_is_none_is_not_waited_for(url: str) -> None:
    began = time.monotonic()
    with pytest.raises(ValueError, match="mend the URL") as error:
        store_of(Config(store_url=url), wait_s=60)
    assert not isinstance(error.value, CannotOpen) and time.monotonic() - began < 5


def test_a_second_store_of_a_process_keeps_the_locks_of_the_first(sqlite_store: Store, tmp_path: Path) -> None:
    """Without them another process takes itself for the last one, and deletes the log under living connections."""
    with sqlite_store.write() as tx:
        adapters.set_alias(tx, "champion", "policy@v1", 1.0)
    Store(sqlite_store.url).close()
    code = (
        "import sys; from kto_ray.store import Store, adapters; store = Store(sys.argv[1])\n"
        "with store.write() as tx: adapters.set_alias(tx, 'champion', 'policy@v2', 2.0)\n"
        "store.close()"
    )
    subprocess.run([sys.executable, "-c", code, sqlite_store.url], check=True, timeout=60)
    assert (tmp_path / "kto.db-shm").exists() and (tmp_path / "kto.db-wal").exists()
    with sqlite_store.write() as tx:
        assert adapters.aliases(tx, "policy@base")["champion"] == "policy@v2"
        adapters.set_alias(tx, "champion", "policy@v3", 3.0)
    subprocess.run([sys.executable, "-c", code, sqlite_store.url], check=True, timeout=60)
    with sqlite_store.read() as tx:
        assert adapters.aliases(tx, "policy@base")["champion"] == "policy@v2"
