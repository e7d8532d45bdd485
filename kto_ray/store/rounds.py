"""The controller's own state: rounds, operator requests, and the lease that keeps controllers apart."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa

from kto_ray.store.schema import leases, requests, rounds
from kto_ray.types import Round, Stage

CONTROLLER = "controller"  # the name of the lease that keeps controllers apart


def insert(tx: sa.Connection, now: float) -> Round:
    """Open a new round at its first stage."""
    number = int(tx.execute(sa.select(sa.func.coalesce(sa.func.max(rounds.c.id), 0))).scalar_one()) + 1
    new = Round(id=number, stage=Stage.SNAPSHOT, started_at=now, stage_started_at=now)
    tx.execute(rounds.insert().values(**_columns(new)))
    return new


def update(tx: sa.Connection, changed: Round) -> None:
    tx.execute(rounds.update().where(rounds.c.id == changed.id).values(**_columns(changed)))


def current(tx: sa.Connection) -> Round | None:
    """The round in progress; there is at most one."""
    query = sa.select(rounds).where(rounds.c.stage != Stage.DONE.value).order_by(rounds.c.id.desc()).limit(1)
    row = tx.execute(query).mappings().first()
    return _round(row) if row else None


def every(tx: sa.Connection) -> list[Round]:
    return [_round(row) for row in tx.execute(sa.select(rounds).order_by(rounds.c.id)).mappings()]


def ask(tx: sa.Connection, action: str, now: float) -> int:
    """Leave a request for the controller; returns its id."""
    result = tx.execute(requests.insert().values(created_at=now, action=action))
    key = result.inserted_primary_key
    assert key is not None
    return int(key[0])


def asked(tx: sa.Connection) -> list[tuple[int, str]]:
    """Requests not yet handled, oldest first: (id, action)."""
    query = sa.select(requests.c.id, requests.c.action).where(requests.c.handled_at.is_(None)).order_by(requests.c.id)
    return [(int(row.id), str(row.action)) for row in tx.execute(query)]


def answer(tx: sa.Connection, request: int, result: str, now: float) -> None:
    tx.execute(requests.update().where(requests.c.id == request).values(handled_at=now, result=result))


def answered(tx: sa.Connection, request: int) -> str | None:
    return tx.execute(sa.select(requests.c.result).where(requests.c.id == request)).scalar()


@dataclass(frozen=True, slots=True)
class Holder:
    """Who acts: the process that holds a lease."""

    node: str
    pid: int


def take_lease(tx: sa.Connection, name: str, holder: str, pid: int, now: float, ttl_s: float) -> bool:
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


def lease_holder(tx: sa.Connection, name: str, now: float) -> Holder | None:
    """Who holds a lease that has not expired."""
    row = tx.execute(sa.select(leases).where(leases.c.name == name, leases.c.expires_at >= now)).first()
    return None if row is None else Holder(str(row.holder).partition(":")[0], row.pid)


def _columns(value: Round) -> dict[str, Any]:
    return {**asdict(value), "stage": value.stage.value}


def _round(row: Any) -> Round:
    return Round(**{**row, "stage": Stage(row["stage"])})
