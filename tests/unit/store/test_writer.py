"""The writer: what waits is committed together, who is at fault fails alone, and nothing that was acknowledged is lost
while the store is away."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from kto_ray.store import Store, feedback, open_store, schema, tallies, writer
from kto_ray.store.database import Patience
from kto_ray.store.recording import KeyReused, Recorded
from kto_ray.store.spool import REFUSED, Spool
from kto_ray.store.tallies import Tally
from kto_ray.store.writer import Writer, WriterBusy
from tests.support.rows import completion, thumb

HASTY = Patience(statement_s=5, lock_s=0.2)


@pytest.fixture
def hasty(store: Store) -> Iterator[Store]:
    opened = open_store(store.url, HASTY)
    yield opened
    opened.close()


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


@pytest.fixture
def pen(hasty: Store, spool: Spool, monkeypatch: pytest.MonkeyPatch) -> Iterator[Writer]:
    """A writer with a spool, which looks often whether the store is back."""
    monkeypatch.setattr(writer, "RETRY_S", 0.05)
    made = Writer(hasty, spool)
    yield made
    made.close()


class Held:
    """Keeps a writer busy, so that what is given to it meanwhile waits together."""

    def __init__(self, pen: Writer) -> None:
        self._go, begun = threading.Event(), threading.Event()

        def wait(_: sa.Connection) -> None:
            begun.set()
            self._go.wait()

        self._done = pen.change(wait)
        begun.wait()

    def release(self) -> None:
        self._go.set()
        self._done.result(10)


def lock(store: Store) -> Callable[[], None]:
    """Holds what every writing transaction needs until it is called: the store is away."""
    held, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with store.write() as tx:
            if not store.sqlite:
                tx.execute(sa.text("LOCK TABLE completions, feedback"))
            held.set()
            leave.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()

    def release() -> None:
        leave.set()
        thread.join()

    return release


def arrived(store: Store, expected: Tally) -> bool:
    """Whether the totals come to be these."""
    for _ in range(200):
        with store.read() as tx:
            told = tallies.total(tx)
        if told == expected:
            return True
        threading.Event().wait(0.05)
    raise AssertionError(told)


def test_what_waits_is_committed_together(pen: Writer, hasty: Store) -> None:
    commits: list[Any] = []
    sa.event.listen(hasty.engine, "commit", commits.append)
    held = Held(pen)
    kept = [pen.keep(completion(f"c{i}", user=f"u{i}")) for i in range(50)]
    said = [pen.record(thumb(f"f{i}", f"c{i}", user=f"u{i}")) for i in range(50)]
    held.release()
    assert [future.result(10) for future in kept] == [None] * 50
    assert {future.result(10).status for future in said} == {Recorded.RECORDED}
    assert len(commits) == 2
    assert arrived(hasty, Tally(completions=50, stored=50, up=50, came=50))


def test_who_is_at_fault_fails_alone(pen: Writer, hasty: Store) -> None:
    def refused(tx: sa.Connection) -> None:
        tallies.add(tx, Tally(stored=1000))
        tx.execute(schema.completions.insert().values(id="half"))  # the other columns may not be null

    def wrong(tx: sa.Connection) -> None:
        raise KeyError("wrong")

    held = Held(pen)
    before, bad, worse = pen.keep(completion("c1")), pen.change(refused), pen.change(wrong)
    fine = pen.change(lambda tx: feedback.withdraw(tx, "unknown", 1.0))
    after = pen.record(thumb("f1", "c1"))
    held.release()
    assert before.result(10) is None and after.result(10).status is Recorded.RECORDED and fine.result(10) is False
    with pytest.raises(sa.exc.IntegrityError):
        bad.result(10)
    with pytest.raises(KeyError):
        worse.result(10)
    assert arrived(hasty, Tally(completions=1, stored=1, up=1, came=1))


def test_one_key_that_waits_twice_is_one_event(pen: Writer, hasty: Store) -> None:
    pen.keep(completion("c1")).result(10)
    first = thumb("f1", idempotency_key="k", body_hash="a")
    held = Held(pen)
    one, again, other = (
        pen.record(thumb(n, idempotency_key="k", body_hash=b)) for n, b in (("f1", "a"), ("f2", "a"), ("f3", "b"))
    )
    same = pen.record(first)
    held.release()
    assert one.result(10).status is Recorded.RECORDED and again.result(10).status is Recorded.DUPLICATE
    assert {told.result(10).feedback_id for told in (one, again, same)} == {"f1"}
    with pytest.raises(KeyReused):
        other.result(10)
    assert arrived(hasty, Tally(completions=1, stored=1, up=1, came=1))


def test_a_queue_that_is_full_says_so(pen: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "WAITING", 3)
    held = Held(pen)
    taken = [pen.keep(completion(f"c{i}")) for i in range(3)]
    with pytest.raises(WriterBusy, match="nothing was recorded"):
        pen.keep(completion("c3"))
    held.release()
    assert all(future.result(10) is None for future in taken)


def test_a_writer_that_is_closed_has_written_all_and_takes_no_more(hasty: Store) -> None:
    pen = Writer(hasty)
    futures = [pen.keep(completion(f"c{i}")) for i in range(100)]
    pen.close()
    assert all(future.done() for future in futures)
    with pytest.raises(WriterBusy, match="stopping"):
        pen.keep(completion("late"))
    assert arrived(hasty, Tally(completions=100))


def test_while_the_store_is_away_the_spool_takes_it_and_the_order_holds(pen: Writer, store: Store) -> None:
    pen.keep(completion("c0")).result(10)
    release = lock(store)
    assert pen.keep(completion("c1")).result(10) is None
    assert pen.record(thumb("f1", "c1", value=False)).result(10).status is Recorded.PENDING
    with pytest.raises(sa.exc.OperationalError):
        pen.change(lambda tx: None).result(10)
    assert pen.record(thumb("f2", "c1", value=True)).result(10).status is Recorded.PENDING
    assert pen.spooled == 3
    release()
    assert arrived(store, Tally(completions=2, stored=2, up=1, came=1))
    with store.read() as tx:
        assert [event.id for event in feedback.events(tx, "c1")] == ["f1", "f2"]
    assert pen.record(thumb("f3", "c0")).result(10).status in (Recorded.RECORDED, Recorded.PENDING)


def test_without_a_spool_a_store_that_is_away_is_told(hasty: Store, store: Store) -> None:
    pen, release = Writer(hasty), lock(store)
    with pytest.raises(sa.exc.OperationalError):
        pen.keep(completion("c1")).result(10)
    release()
    pen.close()


@pytest.mark.parametrize("store", ["postgresql"], indirect=True)
def test_a_connection_that_breaks_loses_and_doubles_nothing(pen: Writer) -> None:
    held = Held(pen)
    kept, said = pen.keep(completion("c1")), pen.record(thumb("f1", "c1"))
    cut = pen.change(lambda tx: tx.execute(sa.text("SELECT pg_terminate_backend(pg_backend_pid())")).all())
    held.release()
    assert kept.result(10) is None and said.result(10).status is Recorded.PENDING
    with pytest.raises(sa.exc.OperationalError):
        cut.result(10)
    assert arrived(pen._store, Tally(completions=1, stored=1, up=1, came=1))


@pytest.mark.parametrize("store", ["postgresql"], indirect=True)  # SQLite's writers are one after the other
def test_a_deadlock_is_tried_again(pen: Writer, store: Store) -> None:
    for name in ("c1", "c2"):
        pen.keep(completion(name)).result(10)
    first, second, tries = threading.Event(), threading.Event(), []
    row = "SELECT 1 FROM completions WHERE id = '{}' FOR UPDATE"

    def ours(tx: sa.Connection) -> int:
        tries.append(1)
        tx.execute(sa.text("SET LOCAL deadlock_timeout = '50ms'"))  # who looks first is the one that gives way
        tx.execute(sa.text("SET LOCAL lock_timeout = 0"))
        tx.execute(sa.text(row.format("c1")))
        first.set()
        second.wait()
        tx.execute(sa.text(row.format("c2")))
        return len(tries)

    def theirs() -> None:
        with store.write() as tx:
            tx.execute(sa.text(row.format("c2")))
            first.wait()
            second.set()
            tx.execute(sa.text(row.format("c1")))

    thread = threading.Thread(target=theirs)
    told: Future[int] = pen.change(ours)
    thread.start()
    assert told.result(20) == 2
    thread.join()


@pytest.mark.parametrize("table", ["completions", "feedback"])
def test_what_the_store_cannot_take_for_its_own_reasons_waits(pen: Writer, store: Store, table: str) -> None:
    """As where a table is moved by hand, or a grant taken away: nothing that was acknowledged is refused for it."""
    pen.keep(completion("c1")).result(10)
    rename(store, table, "gone")
    assert pen.record(thumb("f1", "c1")).result(10).status is Recorded.PENDING
    assert pen.keep(completion("c2")).result(10) is None
    if not store.sqlite:  # which tells a missing table as it tells a missing file
        assert pen.change(lambda tx: 1).result(10) == 1
    threading.Event().wait(0.3)
    assert pen.spooled == 2 and pen._spool is not None and not (pen._spool.folder / REFUSED).exists()
    rename(store, "gone", table)
    assert arrived(store, Tally(completions=2, stored=1, up=1, came=1))


def rename(store: Store, table: str, to: str) -> None:
    with store.write() as tx:
        tx.exec_driver_sql(f"ALTER TABLE {table} RENAME TO {to}")
