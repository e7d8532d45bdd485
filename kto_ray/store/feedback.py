"""The append-only feedback log: record once, withdraw, read."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from kto_ray.records.feedback import Feedback
from kto_ray.store import joining, labels, sequence, tallies
from kto_ray.store.among import among
from kto_ray.store.mapping import feedback_columns, feedback_of
from kto_ray.store.schema import completions, feedback
from kto_ray.store.tallies import Tally


class Recorded(enum.StrEnum):
    RECORDED = "recorded"
    PENDING = "pending"  # its completion is not known yet
    DUPLICATE = "duplicate"  # the same idempotency key and body again


@dataclass(frozen=True, slots=True)
class Receipt:
    feedback_id: str
    completion_id: str | None
    status: Recorded


class KeyReused(ValueError):
    """An idempotency key came again with another body."""


def record(tx: sa.Connection, event: Feedback) -> Receipt:
    """Append an event, exactly once per id and per idempotency key.

    Raises:
        KeyReused: the key is known with another body.
    """
    try:
        with tallies.savepoint(tx):
            [told] = record_all(tx, (event,))
    except sa.exc.IntegrityError:  # on PostgreSQL another transaction has committed the same key since we looked
        [told] = record_all(tx, (event,))
    if isinstance(told, KeyReused):
        raise told
    return told


def record_all(tx: sa.Connection, events: Sequence[Feedback]) -> list[Receipt | KeyReused]:
    """As `record` does, one after the other, in a few statements; what each is told, its fault too.

    Raises:
        sqlalchemy.exc.IntegrityError: another transaction has just committed one of the keys (PostgreSQL).
    """
    known = _known(tx, events)
    fresh: list[Feedback] = []
    for event in events:
        if event.id not in known.by_id and _key(event) not in known.by_key:
            fresh.append(event)
            known.add(event)
    means = joining.resolve(tx, fresh)
    found = {completion_id for completion_id in means if completion_id is not None}
    labels.lock(tx, found)  # before the numbers: their order is the one
    _append(tx, fresh, means)
    tallies.add(tx, Tally(stored=len(fresh), pending=means.count(None)) + labels.refresh(tx, found))
    now = dict(zip((event.id for event in fresh), means, strict=True))
    return [_told(event, known, now) for event in events]


def _append(tx: sa.Connection, fresh: Sequence[Feedback], means: Sequence[str | None]) -> None:
    if fresh:
        numbers = sequence.take(tx, len(fresh))
        each = zip(fresh, means, numbers, strict=True)
        tx.execute(feedback.insert(), [{**feedback_columns(event, of), "seq": seq} for event, of, seq in each])


@dataclass(frozen=True, slots=True)
class _Known:
    """Events that are there already, of a batch too."""

    by_id: dict[str, Feedback]
    by_key: dict[tuple[str, str] | None, Feedback]

    def add(self, event: Feedback) -> None:
        self.by_id[event.id] = event
        if event.idempotency_key is not None:
            self.by_key[_key(event)] = event


def _known(tx: sa.Connection, events: Sequence[Feedback]) -> _Known:
    same: sa.ColumnElement[bool] = among(tx, feedback.c.id, (event.id for event in events))
    for owner in {event.key_owner for event in events if event.idempotency_key is not None}:
        keys = [e.idempotency_key for e in events if e.key_owner == owner and e.idempotency_key is not None]
        same = same | ((feedback.c.key_owner == owner) & among(tx, feedback.c.idempotency_key, keys))
    known = _Known({}, {})
    for row in tx.execute(sa.select(feedback).where(same)).mappings():
        known.add(feedback_of(row))
    return known


def _key(event: Feedback) -> tuple[str, str] | None:
    return None if event.idempotency_key is None else (event.key_owner, event.idempotency_key)


def _told(event: Feedback, known: _Known, now: dict[str, str | None]) -> Receipt | KeyReused:
    before = known.by_id.get(event.id) or known.by_key[_key(event)]
    if before.id == event.id:
        completion_id = now.get(event.id, before.completion_id)
        return Receipt(event.id, completion_id, Recorded.PENDING if completion_id is None else Recorded.RECORDED)
    if before.body_hash != event.body_hash:
        return KeyReused(
            f"Idempotency-Key {event.idempotency_key!r} was used with another body; send a new key for a new event"
        )
    return Receipt(before.id, before.completion_id, Recorded.DUPLICATE)


def withdraw(tx: sa.Connection, feedback_id: str, now: float) -> bool:
    """Mark an event withdrawn (again is fine); False when there is no such event."""
    mine = feedback.c.id == feedback_id
    of = sa.select(feedback.c.completion_id).where(mine)
    labels.lock(tx, tx.execute(of.where(feedback.c.completion_id.is_not(None))).scalars())
    standing = feedback.update().where(mine, feedback.c.withdrawn_at.is_(None)).values(withdrawn_at=now)
    withdrawn = tx.execute(standing).rowcount
    row = tx.execute(of).first()
    if withdrawn and row is not None:
        affected = [row.completion_id] if row.completion_id is not None else []
        tallies.add(tx, Tally(withdrawn=1) + labels.refresh(tx, affected))
    return row is not None


def events(tx: sa.Connection, completion_id: str) -> list[Feedback]:
    query = sa.select(feedback).where(feedback.c.completion_id == completion_id)
    return [feedback_of(row) for row in tx.execute(query.order_by(feedback.c.seq)).mappings()]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Events of the log that a snapshot leaves out, by reason, and the newest event of all."""

    task: int  # on completions with a task header, which never train
    withdrawn: int
    pending: int
    newest_at: float  # seconds since the epoch
    newest_seq: int


def left_out(tx: sa.Connection, until: int | None = None) -> LeftOut:
    """Of the events up to the number `until` in the order of the store, or of all; it walks the log."""
    until = sequence.settled(tx) if until is None else until

    def total(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
        return sa.func.coalesce(sa.func.sum(sa.case((condition, 1), else_=0)), 0)

    query = sa.select(
        total(completions.c.task.is_not(None)),
        total(feedback.c.withdrawn_at.is_not(None)),
        total(feedback.c.completion_id.is_(None)),
        sa.func.coalesce(sa.func.max(feedback.c.created_at), 0.0),
    ).select_from(feedback.outerjoin(completions, feedback.c.completion_id == completions.c.id))
    task, withdrawn, pending, newest_at = tx.execute(query.where(feedback.c.seq <= until)).one()
    return LeftOut(int(task), int(withdrawn), int(pending), float(newest_at), until)
