"""What each policy replica says of itself, and who of them is live."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from kto_ray.records.replicas import LoadFault, ReplicaReport
from kto_ray.store import clock
from kto_ray.store.schema import replicas

FORGET_S = 3600.0  # after its last report; replicas are never named twice
# Of the time after which a replica does not count as live: the longest silence that is no break, with room for the
# clocks of both and for what a report waits for on its way.
BREAK = 0.5


def report(tx: sa.Connection, told: ReplicaReport, timeout_s: float) -> None:
    """Take a replica's report, as of now by the store's clock; and forget those that have been silent for an hour, if
    that one has been heard of meanwhile: after an outage of the store all have been silent.

    Args:
        timeout_s: serve.heartbeat_timeout_s.
    """
    now, mine = float(tx.execute(sa.select(clock.now(tx))).scalar_one()), replicas.c.replica == told.replica
    before = tx.execute(sa.select(replicas.c.heartbeat_at, replicas.c.steady_since).where(mine)).first()
    unbroken = before is not None and before.heartbeat_at >= now - BREAK * timeout_s
    since = min(before.steady_since, now) if before is not None and unbroken else now
    tx.execute(replicas.delete().where(mine))
    columns = {**asdict(told), "held": list(told.held), "heartbeat_at": now, "steady_since": since}
    tx.execute(replicas.insert().values(**columns))
    if since <= now - timeout_s:
        tx.execute(replicas.delete().where(replicas.c.heartbeat_at < now - FORGET_S))


def settled(tx: sa.Connection, timeout_s: float) -> bool:
    """Whether who is silent is gone: another has been heard of for `timeout_s` without a break, so that the store was
    there to be told. Until then they may live, and hold what they held: it was away perhaps, and is just back."""
    now = clock.now(tx)
    silent = sa.exists().where(replicas.c.heartbeat_at < now - timeout_s)
    still = replicas.c.heartbeat_at >= now - BREAK * timeout_s
    steady = sa.exists().where(still, replicas.c.steady_since <= now - timeout_s)
    return bool(tx.execute(sa.select(sa.not_(silent) | steady)).scalar_one())


def live(tx: sa.Connection, timeout_s: float) -> list[ReplicaReport]:
    """Replicas heard of in the last `timeout_s` (serve.heartbeat_timeout_s): the one meaning of "live". One that was
    heard of later than now is of a clock that has jumped back since: it will be heard of again if it lives."""
    now = clock.now(tx)
    lately = (replicas.c.heartbeat_at >= now - timeout_s) & (replicas.c.heartbeat_at <= now + timeout_s)
    query = sa.select(replicas).where(lately).order_by(replicas.c.replica)
    return [_report(row) for row in tx.execute(query).mappings()]


def _report(row: sa.RowMapping) -> ReplicaReport:
    errors = {adapter: _fault(told) for adapter, told in row["errors"].items()}
    columns = {name: value for name, value in row.items() if name != "steady_since"}
    return ReplicaReport(**{**columns, "held": tuple(row["held"]), "errors": errors})


def _fault(told: Any) -> LoadFault:
    """A replica of an older version, while the new ones come, tells words alone, and tries no more."""
    return LoadFault(**told) if isinstance(told, dict) else LoadFault(str(told), refused=True)
