"""What operators ask of the controller, and what it answered."""

from __future__ import annotations

import sqlalchemy as sa

from kto_ray.records.requests import MEANS, NONE, Act, Answer, Done, Refused, Request
from kto_ray.records.rounds import Awaiting
from kto_ray.store import clock, rollouts, rounds
from kto_ray.store.schema import requests


def ask(
    tx: sa.Connection,
    act: Act,
    now: float,
    target: str | None = None,
    expires_s: float | None = None,
    who: str | None = None,
) -> int:
    """Leave a request for the controller; returns its id. What it means is what stands now: a rollout's act, or a
    round's end, without a target is meant for the one in progress, and an approval for the candidate that waits."""
    if target is None and MEANS.get(act) == "rollout":
        live = rollouts.live(tx)
        target = live.id if live is not None else NONE
    elif target is None and MEANS.get(act) == "candidate":
        state = current.state if (current := rounds.current(tx)) else None
        target = state.adapter if isinstance(state, Awaiting) else NONE
    elif target is None and act is Act.END:
        current = rounds.current(tx)
        target = str(current.id) if current is not None else NONE
    values = dict(created_at=now, action=act.value, target=target, who=who)
    until = None if expires_s is None else clock.now(tx) + expires_s
    result = tx.execute(requests.insert().values(**values, expires_at=until))
    key = result.inserted_primary_key
    assert key is not None
    return int(key[0])


def asked(tx: sa.Connection) -> list[Request]:
    """Requests not yet handled, oldest first."""
    expired = sa.func.coalesce(requests.c.expires_at < clock.now(tx), sa.false()).label("expired")
    columns = (requests.c.id, requests.c.action, requests.c.target, expired, requests.c.who)
    query = sa.select(*columns).where(requests.c.handled_at.is_(None)).order_by(requests.c.id)
    known = set(Act)
    return [
        Request(row.id, Act(row.action) if row.action in known else row.action, row.target, bool(row.expired), row.who)
        for row in tx.execute(query)
    ]


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
