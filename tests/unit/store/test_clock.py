"""Leases and heartbeats go by the store's clock, whatever those of the machines say; and they survive that it jumps."""

from __future__ import annotations

import time

import pytest
import sqlalchemy as sa

from kto_ray.records.replicas import ReplicaReport
from kto_ray.store import Store, clock, leases, replicas, schema

HOUR_S = 3600.0


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
        replicas.report(tx, ReplicaReport("wrong", "node", 1, ()))
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
        replicas.report(tx, ReplicaReport("dead", "node", 1, ()))
    shift(store, -HOUR_S)
    assert holder(store) is None and take(store, "b") and not take(store, "c")
    with store.read() as tx:
        assert replicas.live(tx, 15.0) == []
