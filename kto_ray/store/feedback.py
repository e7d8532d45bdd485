"""The append-only feedback log: record once, withdraw, read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import sqlalchemy as sa

from kto_ray.config.capture import FeedbackSection
from kto_ray.feedback.quarantine import Why
from kto_ray.records.feedback import Feedback, Held
from kto_ray.store import clock, labels, sequence, tallies
from kto_ray.store.mapping import feedback_of
from kto_ray.store.recording import Batch, Receipt
from kto_ray.store.schema import completions, feedback
from kto_ray.store.tallies import Tally

DEFAULT = FeedbackSection()
AHEAD_S = 1.0  # that clocks may disagree


def record(tx: sa.Connection, event: Feedback, rules: FeedbackSection = DEFAULT) -> Receipt:
    """Append an event, exactly once per id and per idempotency key of its sender, while that lasts and it stands.

    Raises:
        KeyReused: the key is known with another body.
        TooLong, TooManyEvents: it is beyond what `rules` take.
    """
    try:
        with tallies.savepoint(tx):
            [told] = record_all(tx, (event,), rules)
    except sa.exc.IntegrityError:  # on PostgreSQL another transaction has committed the same key since we looked
        [told] = record_all(tx, (event,), rules)
    if isinstance(told, ValueError):
        raise told
    return told


def record_all(
    tx: sa.Connection, events: Sequence[Feedback], rules: FeedbackSection = DEFAULT
) -> list[Receipt | ValueError]:
    """As `record` does, one after the other, in a few statements; what each is told, its fault too.

    Raises:
        sqlalchemy.exc.IntegrityError: another transaction has just committed one of the keys (PostgreSQL).
    """
    come = _by_our_clock(tx, events)
    batch = Batch(tx, come, rules)
    told = [batch.add(event) for event in come]
    batch.finish()
    return told


def _by_our_clock(tx: sa.Connection, events: Sequence[Feedback]) -> list[Feedback]:
    """Quarantine counts days and minutes between events: none is of later than the store's now, whatever the clock of
    its gateway said. One that came late, through a spool say, keeps its time."""
    now = float(tx.execute(sa.select(clock.now(tx))).scalar_one())
    return [replace(one, created_at=now) if one.created_at > now + AHEAD_S else one for one in events]


def withdraw(tx: sa.Connection, feedback_id: str, now: float) -> bool:
    """Mark an event withdrawn (again is fine), with all that was spread from it; False when there is no such event."""
    theirs = (feedback.c.id == feedback_id) | (feedback.c.parent == feedback_id)
    of = list(tx.execute(sa.select(feedback.c.completion_id).where(theirs)).scalars())
    affected = {completion for completion in of if completion is not None}
    labels.lock(tx, affected)
    standing = feedback.update().where(theirs, feedback.c.withdrawn_at.is_(None)).values(withdrawn_at=now)
    withdrawn = tx.execute(standing).rowcount
    # Looked at again: an erasure may have held the lock, or a completion come, in between.
    now_of = list(tx.execute(sa.select(feedback.c.completion_id).where(theirs)).scalars())
    if withdrawn and now_of:
        affected |= {completion for completion in now_of if completion is not None}
        tallies.add(tx, Tally(withdrawn=withdrawn) + labels.refresh(tx, affected))
    return bool(now_of)


def get(tx: sa.Connection, feedback_id: str) -> Feedback | None:
    row = tx.execute(sa.select(feedback).where(feedback.c.id == feedback_id)).mappings().first()
    return feedback_of(row) if row else None


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
    held: int = 0  # or dropped by an operator
    not_theirs: int = 0  # of neither who received the answer nor a reviewer
    orphan: int = 0  # of completions that never came
    forced: int = 0  # on answers whose words the client forced


def left_out(tx: sa.Connection, until: int | None = None) -> LeftOut:
    """Of the events up to the number `until` in the order of the store, or of all; it walks the log."""
    until = sequence.settled(tx) if until is None else until
    f, c = feedback.c, completions.c

    def total(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
        return sa.func.coalesce(sa.func.sum(sa.case((condition, 1), else_=0)), 0)

    why = {name: sa.func.coalesce(f.held_why, "") == name for name in (Why.STRANGER.value, Why.ORPHAN.value)}
    query = sa.select(
        total(c.task.is_not(None)),
        total(f.withdrawn_at.is_not(None)),
        total(f.completion_id.is_(None) & f.held.is_(None)),
        total(f.held.in_((Held.HELD.value, Held.DROPPED.value)) & ~why[Why.STRANGER.value] & ~why[Why.ORPHAN.value]),
        total(why[Why.STRANGER.value]),
        total(why[Why.ORPHAN.value]),
        total(sa.func.coalesce(c.forced, sa.false())),
        sa.func.coalesce(sa.func.max(f.created_at), 0.0),
    ).select_from(feedback.outerjoin(completions, f.completion_id == c.id))
    *numbers, newest_at = tx.execute(query.where(f.seq <= until)).one()
    task, withdrawn, pending, *others = map(int, numbers)
    return LeftOut(task, withdrawn, pending, float(newest_at), until, *others)
