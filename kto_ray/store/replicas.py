"""What each policy replica says of itself, and who of them is live."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from kto_ray.records.replicas import LoadFault, ReplicaReport
from kto_ray.store import clock
from kto_ray.store.schema import replicas

FORGET_S = 3600.0  # after its last report; replicas are never named twice


def report(tx: sa.Connection, told: ReplicaReport) -> None:
    """Take a replica's report, as of now by the store's clock, and forget those that have been silent for an hour."""
    now = clock.now(tx)
    silent = replicas.c.heartbeat_at < now - FORGET_S
    tx.execute(replicas.delete().where((replicas.c.replica == told.replica) | silent))
    columns = {**asdict(told), "held": list(told.held), "heartbeat_at": now}
    tx.execute(replicas.insert().values(**columns))


def live(tx: sa.Connection, timeout_s: float) -> list[ReplicaReport]:
    """Replicas heard of in the last `timeout_s` (serve.heartbeat_timeout_s): the one meaning of "live". One that was
    heard of later than now is of a clock that has jumped back since: it will be heard of again if it lives."""
    now = clock.now(tx)
    lately = (replicas.c.heartbeat_at >= now - timeout_s) & (replicas.c.heartbeat_at <= now + timeout_s)
    query = sa.select(replicas).where(lately).order_by(replicas.c.replica)
    return [_report(row) for row in tx.execute(query).mappings()]


def _report(row: sa.RowMapping) -> ReplicaReport:
    errors = {adapter: _fault(told) for adapter, told in row["errors"].items()}
    return ReplicaReport(**{**row, "held": tuple(row["held"]), "errors": errors})


def _fault(told: Any) -> LoadFault:
    """A replica of an older version, while the new ones come, tells words alone, and tries no more."""
    return LoadFault(**told) if isinstance(told, dict) else LoadFault(str(told), refused=True)
