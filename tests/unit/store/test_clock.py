"""Leases, heartbeats and quarantine go by the store's clock, whatever those of the machines say; leases survive that it
jumps."""

from __future__ import annotations

import time

import pytest
import sqlalchemy as sa

from kto_ray.records.replicas import ReplicaReport
from kto_ray.store import (
    Store,
    clock,
    completions,
    feedback,
    labels,
    leases,
    quarantine,
    replicas,
    schema,
)
from tests.support.rows import completion, thumb

HOUR_S, DAY_S = 3600.0, 86_400.0


def test_an_event_of_a_clock_that_is_ahead_comes_now_and_one_behind_keeps_its_time(store: Store) -> None:
    began = time.time()
    with store.write() as tx:
        for name, at in (("c1", began + 400 * DAY_S), ("c2", began - 8 * DAY_S)):
            completions.insert(tx, completion(name))
            feedback.record(tx, thumb(f"of-{name}", name, created_at=at))
        [ahead], [behind] = (feedback.events(tx, name) for name in ("c1", "c2"))
        assert began - 5 < ahead.created_at <= time.time() + 5 and behind.created_at == began - 8 * DAY_S
        assert [label.at for label in labels.of(tx, "c1")] == [ahead.created_at]


def test_who_comes_again_a_minute_later_by_a_clock_days_ahead_has_not_come_back(store: Store) -> None:
    """Quarantine lets go of what newcomers said when they come back after days."""
    now = time.time()
    with store.write() as tx:
        for day in range(20):
            completions.insert(tx, completion(f"c{day}"))
            feedback.record(tx, thumb(f"f{day}", f"c{day}", created_at=now - (20 - day) * DAY_S))
        for number, at in enumerate((now - 60.0, now + 8 * DAY_S)):
            completions.insert(tx, completion(f"new{number}", user="new"))
            feedback.record(tx, thumb(f"new{number}", f"new{number}", user="new", created_at=at))
        assert [event.id for event in quarantine.waiting(tx)] == ["new0", "new1"]


def shift(store: Store, by_s: float) -> None:
    """As if so many seconds had passed since everybody was last heard of; back, if below 0."""
    with store.write() as tx:
        tx.execute(schema.leases.update().values(expires_at=schema.leases.c.expires_at - by_s))
        tx.execute(schema.replicas.update().values(heartbeat_at=schema.replicas.c.heartbeat_at - by_s))


def take(store: Store, who: str, pid: int = 1) -> bool:
    with store.write() as tx:
        return leases.take(tx, "controller", f"{who}:x", pid, ttl_s=10.0)


def holder(store: Store) -> leases.Holder | None:
    with store.read() as tx:
        return leases.holder(tx, "controller", ttl_s=10.0)


def test_the_store_s_clock_is_that_of_its_machine(store: Store) -> None:
    with store.read() as tx:
        told = tx.execute(sa.select(clock.now(tx))).scalar_one()
    assert abs(told - time.time()) < 5


def test_the_lease_has_one_holder_until_it_expires(store: Store) -> None:
    assert take(store, "a") and take(store, "a") and not take(store, "b")
    shift(store, 9)
    assert not take(store, "b")
    found = holder(store)
    assert found is not None and (found.node, found.pid) == ("a", 1) and 9 <= found.ago_s < 10
    shift(store, 2)
    assert holder(store) is None and take(store, "b", 2) and not take(store, "a")
    found = holder(store)
    assert found is not None and (found.node, found.pid) == ("b", 2)


@pytest.mark.parametrize("wrong_s", [-HOUR_S, HOUR_S])
def test_a_machine_whose_clock_jumps_keeps_and_takes_no_more_than_others(
    store: Store, monkeypatch: pytest.MonkeyPatch, wrong_s: float
) -> None:
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + wrong_s)
    assert take(store, "wrong")
    with store.write() as tx:
        replicas.report(tx, ReplicaReport("wrong", "node", 1, ()), 15.0)
    monkeypatch.undo()
    assert not take(store, "b")
    with store.read() as tx:
        assert [replica.replica for replica in replicas.live(tx, 15.0)] == ["wrong"]
    shift(store, 16)
    assert take(store, "b")
    with store.read() as tx:
        assert replicas.live(tx, 15.0) == []


def test_a_store_whose_clock_jumps_back_waits_for_nobody(store: Store) -> None:
    assert take(store, "dead")
    with store.write() as tx:
        replicas.report(tx, ReplicaReport("dead", "node", 1, ()), 15.0)
    shift(store, -HOUR_S)
    assert holder(store) is None and take(store, "b") and not take(store, "c")
    with store.read() as tx:
        assert replicas.live(tx, 15.0) == []
