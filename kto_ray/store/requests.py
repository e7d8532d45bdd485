"""What operators ask of the controller, and what it answered."""

from __future__ import annotations

import sqlalchemy as sa

from kto_ray.records.requests import Act, Answer, Done, Refused
from kto_ray.store.schema import requests


def ask(tx: sa.Connection, act: Act, now: float) -> int:
    """Leave a request for the controller; returns its id."""
    result = tx.execute(requests.insert().values(created_at=now, action=act.value))
    key = result.inserted_primary_key
    assert key is not None
    return int(key[0])


def asked(tx: sa.Connection) -> list[tuple[int, Act | str]]:
    """Requests not yet handled, oldest first: (id, what is asked), a text where only a newer program knows it."""
    query = sa.select(requests.c.id, requests.c.action).where(requests.c.handled_at.is_(None)).order_by(requests.c.id)
    known = set(Act)
    return [(int(row.id), Act(row.action) if row.action in known else str(row.action)) for row in tx.execute(query)]


def answer(tx: sa.Connection, request: int, given: Answer, now: float) -> None:
    values = dict(handled_at=now, refused=isinstance(given, Refused), result=given.words)
    tx.execute(requests.update().where(requests.c.id == request).values(**values))


def answered(tx: sa.Connection, request: int) -> Answer | None:
    """The answer, None while there is none."""
    row = tx.execute(sa.select(requests).where(requests.c.id == request, requests.c.handled_at.is_not(None))).first()
    if row is None:
        return None
    return Refused(row.result) if row.refused else Done(row.result)


def forget(tx: sa.Connection, before: float, limit: int) -> int:
    """Delete some of the requests that were handled before a time (seconds since the epoch); returns how many."""
    old = sa.select(requests.c.id).where(requests.c.handled_at < before).order_by(requests.c.id).limit(limit)
    return tx.execute(requests.delete().where(requests.c.id.in_(old))).rowcount
