"""Rows of replicas: those that live no more go, and those of an older version are understood."""

from __future__ import annotations

import sqlalchemy as sa

from kto_ray.records.replicas import LoadFault, ReplicaReport
from kto_ray.store import Store, replicas
from kto_ray.store.schema import replicas as rows


def heard(tx: sa.Connection, *names: str) -> None:
    for name in names:
        replicas.report(tx, ReplicaReport(name, "node", 1, ()), 15.0)


def passes(tx: sa.Connection, seconds: float) -> None:
    """All that was told has been told so much longer ago."""
    then = {rows.c.heartbeat_at: rows.c.heartbeat_at - seconds, rows.c.steady_since: rows.c.steady_since - seconds}
    tx.execute(rows.update().values(then))


def steadily(tx: sa.Connection, name: str, seconds: float) -> None:
    """Heard of every five of them."""
    for _ in range(int(seconds // 5)):
        passes(tx, 5.0)
        heard(tx, name)


def known(tx: sa.Connection) -> set[str]:
    return set(tx.execute(sa.select(rows.c.replica)).scalars())


def test_a_replica_that_has_been_silent_for_an_hour_is_forgotten(store: Store) -> None:
    with store.write() as tx:
        heard(tx, "gone")
        passes(tx, 120.0)
        heard(tx, "silent")
        passes(tx, replicas.FORGET_S - 60)
        heard(tx, "r")
        assert known(tx) == {"gone", "silent", "r"}, "the store was away perhaps, and with it all were silent"
        steadily(tx, "r", 15.0)
        assert known(tx) == {"silent", "r"}
        assert [live.replica for live in replicas.live(tx, 15.0)] == ["r"]


def test_who_is_silent_is_gone_once_another_was_heard_of_for_long_enough(store: Store) -> None:
    with store.write() as tx:
        assert replicas.settled(tx, 15.0), "there is nobody"
        heard(tx, "a", "b")
        assert replicas.settled(tx, 15.0), "nobody is missed"
        passes(tx, 30.0)
        assert not replicas.settled(tx, 15.0)
        heard(tx, "a")
        assert not replicas.settled(tx, 15.0), "the store is just back: the other may be heard of in a moment"
        steadily(tx, "a", 10.0)
        assert not replicas.settled(tx, 15.0)
        steadily(tx, "a", 5.0)
        assert replicas.settled(tx, 15.0), "the store has been there to be told"
        passes(tx, 16.0)
        heard(tx, "a")
        assert not replicas.settled(tx, 15.0), "it was away again"
        heard(tx, "b")
        assert replicas.settled(tx, 15.0)


def test_an_outage_that_is_nearly_as_long_as_a_silence_may_be_hides_nobody(store: Store) -> None:
    with store.write() as tx:
        for name, seconds in (("b", 0.7), ("a", 20.0)):
            heard(tx, name)
            passes(tx, seconds)
        tx.execute(rows.update().values(heartbeat_at=rows.c.heartbeat_at + 20.0, steady_since=0.0))
        passes(tx, 14.6)  # a was heard of 14.6 s ago, b 15.3
        assert [live.replica for live in replicas.live(tx, 15.0)] == ["a"]
        assert not replicas.settled(tx, 15.0), "a was heard of before the store went"
        heard(tx, "a")
        assert not replicas.settled(tx, 15.0)


def test_a_clock_that_jumps_back_holds_nobody_up(store: Store) -> None:
    """Whoever was heard of later than now is so from now on."""
    with store.write() as tx:
        heard(tx, "a")
        passes(tx, -3600.0)
        heard(tx, "a", "b")
        steadily(tx, "a", 20.0)
        assert replicas.settled(tx, 15.0), "b is missed, by one who was there"


def test_a_row_of_a_program_that_knew_no_breaks_is_no_obstacle(store: Store) -> None:
    """It writes no `steady_since`, while replicas are replaced one by one."""
    with store.write() as tx:
        heard(tx, "gone")
        passes(tx, 30.0)
        heard(tx, "old")
        tx.execute(rows.update().where(rows.c.replica == "old").values(steady_since=0.0))
        assert replicas.settled(tx, 15.0)


def test_what_an_older_replica_tells_of_an_adapter_is_words_alone(store: Store) -> None:
    with store.write() as tx:
        replicas.report(tx, ReplicaReport("r", "node", 1, ()), 15.0)
        tx.execute(rows.update().values(errors={"policy@v1": "broken"}))
        [live] = replicas.live(tx, 15.0)
    assert live.errors == {"policy@v1": LoadFault("broken", refused=True)}
