"""Rows of replicas: those that live no more go, and those of an older version are understood."""

from __future__ import annotations

import sqlalchemy as sa

from kto_ray.records.replicas import LoadFault, ReplicaReport
from kto_ray.store import Store, replicas
from kto_ray.store.schema import replicas as rows


def test_a_replica_that_has_been_silent_for_an_hour_is_forgotten(store: Store) -> None:
    with store.write() as tx:
        for name, ago_s in (("gone", replicas.FORGET_S + 60), ("silent", replicas.FORGET_S - 60), ("r", 0.0)):
            replicas.report(tx, ReplicaReport(name, "node", 1, ()))
            earlier = rows.c.heartbeat_at - ago_s
            tx.execute(rows.update().where(rows.c.replica == name).values(heartbeat_at=earlier))
        replicas.report(tx, ReplicaReport("r", "node", 1, ()))
        assert set(tx.execute(sa.select(rows.c.replica)).scalars()) == {"silent", "r"}
        assert [live.replica for live in replicas.live(tx, 15.0)] == ["r"]


def test_what_an_older_replica_tells_of_an_adapter_is_words_alone(store: Store) -> None:
    with store.write() as tx:
        replicas.report(tx, ReplicaReport("r", "node", 1, ()))
        tx.execute(rows.update().values(errors={"policy@v1": "broken"}))
        [live] = replicas.live(tx, 15.0)
    assert live.errors == {"policy@v1": LoadFault("broken", refused=True)}
