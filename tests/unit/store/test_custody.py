"""One at a time has the files, an erasure takes them from who seals, and who lost them publishes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from kto_ray.store import Store, custody
from kto_ray.store.custody import Busy, Lost, Work
from kto_ray.store.database import Patience
from kto_ray.store.schema import leases


def at_once(store: Store, work: Work) -> None:
    with custody.custody(store, work, patience_s=0):
        pass


def test_one_at_a_time_and_free_afterwards(store: Store) -> None:
    for work in Work:
        with custody.custody(store, work), pytest.raises(Busy, match=f"{work} goes on in another process"):
            at_once(store, Work.ARCHIVING)
    with store.read() as tx:
        assert tx.execute(sa.select(leases)).all() == []


def test_an_erasure_takes_them_from_who_seals(store: Store) -> None:
    with custody.custody(store, Work.SEALING) as sealing:
        sealing.renew()
        sealing.check()
        with custody.custody(store, Work.ERASING, patience_s=0), pytest.raises(Busy):
            at_once(store, Work.SEALING)
        sealing.renew()
        with pytest.raises(Lost, match="erased while the snapshot was sealed"):
            sealing.check()
        with pytest.raises(Lost):
            sealing.publish()


def test_the_erasure_is_noticed_also_when_it_has_ended_before(store: Store) -> None:
    with custody.custody(store, Work.SEALING) as sealing:
        at_once(store, Work.ERASING)
        with pytest.raises(Lost):
            sealing.publish()


def test_who_publishes_is_waited_for(store: Store) -> None:
    with custody.custody(store, Work.SEALING) as sealing:
        sealing.publish()
        with pytest.raises(Busy, match="publishing goes on"):
            at_once(store, Work.ERASING)
        sealing.renew()
        sealing.check()


def test_what_a_killed_process_left_expires(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(custody, "TTL_S", -1.0)
    killed = custody.Custody(store, Work.ERASING)
    assert killed.take() is None
    with custody.custody(store, Work.SEALING, patience_s=0):
        killed.release()  # it lives after all: not what is another's by now
        with pytest.raises(Lost):
            killed.publish()


def test_it_is_renewed_in_the_background(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    renewed: list[Any] = []
    monkeypatch.setattr(custody, "RENEW_S", 0.01)
    monkeypatch.setattr(custody.Custody, "renew", lambda self: renewed.append(self))
    with custody.custody(store, Work.SEALING) as mine:
        while len(renewed) < 2:
            pass
    assert renewed[0] is mine


def stand_still(store: Store) -> None:
    """As a process does that is stopped for longer than the lease lasts."""
    with store.write() as tx:
        tx.execute(leases.update().values(expires_at=leases.c.expires_at - 2 * custody.TTL_S))


@pytest.mark.parametrize("work", list(Work))
def test_who_stood_still_names_nothing_once_another_has_had_the_files(store: Store, work: Work) -> None:
    with custody.custody(store, work) as mine:
        stand_still(store)
        with mine.naming() as tx:  # nobody has taken it
            assert tx.execute(sa.select(leases.c.holder)).scalar_one().endswith(work)
        stand_still(store)
        at_once(store, Work.ERASING)
        with pytest.raises(Lost, match=f"{work} stood still for longer than 30 s.*try again"), mine.naming():
            raise AssertionError("another may have deleted what is named here")


def test_a_snapshot_is_published_under_the_lease(store: Store) -> None:
    with custody.custody(store, Work.SEALING) as mine:
        with mine.publishing(), pytest.raises(sa.exc.OperationalError):  # locked
            at_once(Store(store.url, Patience(1, 0.1)), Work.ERASING)
        mine.publish()
        stand_still(store)
        at_once(store, Work.ERASING)
        with pytest.raises(Lost), mine.publishing():
            raise AssertionError("what was read may be erased")
