"""What each policy replica says of itself, and who of them is live."""

from __future__ import annotations

from dataclasses import asdict

import sqlalchemy as sa

from kto_ray.records.replicas import ReplicaReport
from kto_ray.store.schema import replicas

FORGET_S = 3600.0  # after its last report; replicas are never named twice


def report(tx: sa.Connection, told: ReplicaReport) -> None:
    """Take a replica's report, and forget those that have been silent for an hour."""
    silent = replicas.c.heartbeat_at < told.heartbeat_at - FORGET_S
    tx.execute(replicas.delete().where((replicas.c.replica == told.replica) | silent))
    tx.execute(replicas.insert().values(**{**asdict(told), "held": list(told.held), "errors": dict(told.errors)}))


def live(tx: sa.Connection, now: float, timeout_s: float) -> list[ReplicaReport]:
    """Replicas heard of in the last `timeout_s` (serve.heartbeat_timeout_s): the one meaning of "live"."""
    query = sa.select(replicas).where(replicas.c.heartbeat_at >= now - timeout_s).order_by(replicas.c.replica)
    return [ReplicaReport(**{**row, "held": tuple(row["held"])}) for row in tx.execute(query).mappings()]
