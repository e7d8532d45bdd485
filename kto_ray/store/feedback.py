"""The append-only feedback log: record once, withdraw, read."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from kto_ray.records.feedback import Feedback
from kto_ray.store import joining, labels, sequence, tallies
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
    """Append an event, exactly once per idempotency key.

    Raises:
        KeyReused: the key is known with another body.
    """
    if event.idempotency_key is not None:
        known = _by_key(tx, event)
        if known is not None:
            return _repeat(known, event)
    completion_id = joining.resolve(tx, event)
    labels.lock(tx, [completion_id] if completion_id is not None else [])  # before the number: its order is the one
    try:
        with tx.begin_nested():
            [seq] = sequence.take(tx)
            tx.execute(feedback.insert().values(**{**feedback_columns(event, completion_id), "seq": seq}))
    except sa.exc.IntegrityError:
        # On PostgreSQL another transaction may have committed the same key since we looked.
        known = _by_key(tx, event) if event.idempotency_key else None
        if known is None:
            raise
        return _repeat(known, event)
    if completion_id is None:
        tallies.add(tx, Tally(stored=1, pending=1))
        return Receipt(event.id, None, Recorded.PENDING)
    tallies.add(tx, Tally(stored=1) + labels.refresh(tx, [completion_id]))
    return Receipt(event.id, completion_id, Recorded.RECORDED)


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


def _by_key(tx: sa.Connection, event: Feedback) -> Any:
    same = (feedback.c.idempotency_key == event.idempotency_key) & (feedback.c.key_owner == event.key_owner)
    return tx.execute(sa.select(feedback).where(same)).mappings().first()


def _repeat(known: Any, event: Feedback) -> Receipt:
    if known["body_hash"] != event.body_hash:
        raise KeyReused(
            f"Idempotency-Key {event.idempotency_key!r} was used with another body; send a new key for a new event"
        )
    return Receipt(known["id"], known["completion_id"] or known["named_completion"], Recorded.DUPLICATE)
