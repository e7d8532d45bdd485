"""Who may act: leases, which expire by the store's clock unless they are renewed."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from kto_ray.store import clock
from kto_ray.store.schema import leases

CONTROLLER = "controller"  # the lease that keeps controllers apart
TTL_S = 10.0  # that it lasts, unless it is renewed


@dataclass(frozen=True, slots=True)
class Holder:
    """Who acts: the process that holds a lease, which it renewed `ago_s` ago."""

    node: str
    pid: int
    ago_s: float


def take(tx: sa.Connection, name: str, holder: str, pid: int, ttl_s: float = TTL_S) -> bool:
    """Take or renew a lease; False while another holder's has not expired. One that expires later than any can that was
    taken by now is of a clock that has jumped back since, and counts as expired."""
    now = clock.now(tx)
    expired = (leases.c.expires_at < now) | (leases.c.expires_at > now + ttl_s)
    mine = (leases.c.holder == holder) | expired
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


def keep(tx: sa.Connection, name: str, holder: str, ttl_s: float = TTL_S) -> bool:
    """Renew a lease that nobody else has taken since; False where another has, also if theirs has expired again: what
    one saw before that is not what is."""
    mine = (leases.c.name == name) & (leases.c.holder == holder)
    return tx.execute(leases.update().where(mine).values(expires_at=clock.now(tx) + ttl_s)).rowcount > 0


def stand_still(tx: sa.Connection, name: str) -> None:
    """Let who acts by a lease end what they do just now, and nobody act by it before this transaction has ended."""
    tx.execute(sa.select(leases.c.name).where(leases.c.name == name).with_for_update())


def holder(tx: sa.Connection, name: str, ttl_s: float = TTL_S) -> Holder | None:
    """Who holds a lease that has not expired."""
    left_s = leases.c.expires_at - clock.now(tx)
    row = tx.execute(sa.select(leases, left_s.label("left_s")).where(leases.c.name == name)).first()
    if row is None or not 0 <= row.left_s <= ttl_s:
        return None
    return Holder(str(row.holder).partition(":")[0], row.pid, ttl_s - row.left_s)
