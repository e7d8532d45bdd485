"""The append-only feedback log: record once, join to completions, withdraw, count."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from kto_ray.store.completions import external_ref, find_external
from kto_ray.store.schema import completions, feedback
from kto_ray.types import Arm, Feedback, FeedbackKind


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
        known = _by_key(tx, event.idempotency_key)
        if known is not None:
            return _repeat(known, event)
    completion_id = _resolve(tx, event)
    external = event.external
    values = dict(
        id=event.id,
        created_at=event.created_at,
        kind=event.kind.value,
        completion_id=completion_id,
        named_completion=event.completion_id,
        external_system=external.system if external else None,
        external_conversation=external.conversation if external else None,
        external_message=external.message if external else None,
        user=event.user,
        value=event.value,
        text=event.text,
        reason_codes=list(event.reason_codes),
        comment=event.comment,
        tags=dict(event.tags),
        idempotency_key=event.idempotency_key,
        body_hash=event.body_hash,
    )
    try:
        with tx.begin_nested():
            tx.execute(feedback.insert().values(**values))
    except sa.exc.IntegrityError:
        # On PostgreSQL another transaction may have committed the same key since we looked.
        known = _by_key(tx, event.idempotency_key) if event.idempotency_key else None
        if known is None:
            raise
        return _repeat(known, event)
    return Receipt(event.id, completion_id, Recorded.RECORDED if completion_id else Recorded.PENDING)


def withdraw(tx: sa.Connection, feedback_id: str, now: float) -> bool:
    """Mark an event withdrawn (again is fine); False when there is no such event."""
    query = (
        feedback.update()
        .where(feedback.c.id == feedback_id)
        .values(withdrawn_at=sa.func.coalesce(feedback.c.withdrawn_at, now))
    )
    return tx.execute(query).rowcount > 0


def join_pending(tx: sa.Connection) -> int:
    """Join events whose completion has arrived meanwhile; returns how many.

    An insert joins what waits for it, but two concurrent PostgreSQL transactions can miss each other; the controller
    calls this at every tick.
    """
    pending = tx.execute(sa.select(feedback).where(feedback.c.completion_id.is_(None))).mappings().all()
    joined = 0
    for row in pending:
        completion_id = _resolve(tx, as_feedback(row))
        if completion_id is not None:
            tx.execute(feedback.update().where(feedback.c.id == row["id"]).values(completion_id=completion_id))
            joined += 1
    return joined


def events(tx: sa.Connection, completion_id: str) -> list[Feedback]:
    query = sa.select(feedback).where(feedback.c.completion_id == completion_id)
    return [as_feedback(row) for row in tx.execute(query.order_by(feedback.c.created_at, feedback.c.id)).mappings()]


def every(tx: sa.Connection) -> list[Feedback]:
    """The whole log, oldest first, for export."""
    query = sa.select(feedback).order_by(feedback.c.created_at, feedback.c.id)
    return [as_feedback(row) for row in tx.execute(query).mappings()]


@dataclass(frozen=True, slots=True)
class Counts:
    """`stored` counts all events; `up` and `down` the thumbs that can train, `edits` the edits that can."""

    stored: int
    pending: int
    withdrawn: int
    up: int
    down: int
    edits: int
    task: int  # events on completions with a task header, which never train
    newest_at: float

    @property
    def labels(self) -> int:
        return self.up + self.down + self.edits


def counts(tx: sa.Connection, since: float = 0.0, until: float | None = None) -> Counts:
    """Counts over the events recorded after `since` and not after `until`."""
    within = feedback.c.created_at > since
    if until is not None:
        within = within & (feedback.c.created_at <= until)
    joined = feedback.outerjoin(completions, feedback.c.completion_id == completions.c.id)
    live = feedback.c.withdrawn_at.is_(None) & completions.c.task.is_(None) & feedback.c.completion_id.is_not(None)
    thumb, edit = feedback.c.kind == FeedbackKind.THUMB.value, feedback.c.kind == FeedbackKind.EDIT.value

    def total(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
        return sa.func.coalesce(sa.func.sum(sa.case((condition, 1), else_=0)), 0)

    row = tx.execute(
        sa.select(
            sa.func.count(),
            total(feedback.c.completion_id.is_(None)),
            total(feedback.c.withdrawn_at.is_not(None)),
            total(live & thumb & feedback.c.value.is_(True)),
            total(live & thumb & feedback.c.value.is_(False)),
            total(live & edit),
            total(completions.c.task.is_not(None)),
            sa.func.coalesce(sa.func.max(feedback.c.created_at), 0.0),
        )
        .select_from(joined)
        .where(within)
    ).one()
    stored, pending, withdrawn, up, down, edits, task = (int(v) for v in row[:7])
    return Counts(stored, pending, withdrawn, up, down, edits, task, newest_at=float(row[7]))


def votes_by_arm(tx: sa.Connection) -> list[tuple[float, str, str, bool]]:
    """(time, arm, adapter, up) of every live thumb and edit on routed traffic, oldest first; an edit is a down."""
    query = (
        sa.select(feedback.c.created_at, completions.c.arm, completions.c.adapter, feedback.c.kind, feedback.c.value)
        .join(completions, feedback.c.completion_id == completions.c.id)
        .where(
            feedback.c.withdrawn_at.is_(None),
            feedback.c.kind != FeedbackKind.COMMENT.value,
            completions.c.arm.in_([Arm.CHAMPION.value, Arm.CHALLENGER.value]),
            completions.c.task.is_(None),
        )
        .order_by(feedback.c.created_at, feedback.c.id)
    )
    return [(r[0], r[1], r[2], r[3] == FeedbackKind.THUMB.value and bool(r[4])) for r in tx.execute(query)]


def as_feedback(row: Any) -> Feedback:
    return Feedback(
        id=row["id"],
        created_at=row["created_at"],
        kind=FeedbackKind(row["kind"]),
        completion_id=row["completion_id"] or row["named_completion"],
        user=row["user"],
        value=row["value"],
        text=row["text"],
        external=external_ref(row),
        reason_codes=tuple(row["reason_codes"]),
        comment=row["comment"],
        tags=row["tags"],
        idempotency_key=row["idempotency_key"],
        body_hash=row["body_hash"],
        withdrawn_at=row["withdrawn_at"],
    )


def _resolve(tx: sa.Connection, event: Feedback) -> str | None:
    if event.completion_id is not None:
        query = sa.select(completions.c.id).where(completions.c.id == event.completion_id)
        return tx.execute(query).scalar()
    return find_external(tx, event.external) if event.external else None


def _by_key(tx: sa.Connection, key: str) -> Any:
    return tx.execute(sa.select(feedback).where(feedback.c.idempotency_key == key)).mappings().first()


def _repeat(known: Any, event: Feedback) -> Receipt:
    if known["body_hash"] != event.body_hash:
        raise KeyReused(
            f"Idempotency-Key {event.idempotency_key!r} was used with another body; send a new key for a new event"
        )
    return Receipt(known["id"], known["completion_id"] or known["named_completion"], Recorded.DUPLICATE)
