"""Who may act: leases, which expire unless they are renewed."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from kto_ray.store.schema import leases

CONTROLLER = "controller"  # the lease that keeps controllers apart


@dataclass(frozen=True, slots=True)
class Holder:
    """Who acts: the process that holds a lease."""

    node: str
    pid: int


def take(tx: sa.Connection, name: str, holder: str, pid: int, now: float, ttl_s: float) -> bool:
    """Take or renew a lease; False while another holder's has not expired."""
    mine = (leases.c.holder == holder) | (leases.c.expires_at < now)
    renewed = tx.execute(
        leases.update().where(leases.c.name == name, mine).values(holder=holder, pid=pid, expires_at=now + ttl_s)
    )
    if renewed.rowcount:
        return True
    if tx.execute(sa.select(leases.c.name).where(leases.c.name == name)).scalar() is not None:
        return False
    try:
        with tx.begin_nested():
            tx.execute(leases.insert().values(name=name, holder=holder, pid=pid, expires_at=now + ttl_s))
    except sa.exc.IntegrityError:  # another took it between the two statements
        return False
    return True


def holder(tx: sa.Connection, name: str, now: float) -> Holder | None:
    """Who holds a lease that has not expired."""
    row = tx.execute(sa.select(leases).where(leases.c.name == name, leases.c.expires_at >= now)).first()
    return None if row is None else Holder(str(row.holder).partition(":")[0], row.pid)
