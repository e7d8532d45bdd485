"""The append-only feedback log: record once, withdraw, read."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from kto_ray.config.capture import FeedbackSection
from kto_ray.feedback.labels import attributed, silence, theirs
from kto_ray.feedback.labels import labels as labels_of
from kto_ray.feedback.quarantine import DAY_S, Why
from kto_ray.records.feedback import Feedback, Held
from kto_ray.store import joining, labels, quarantine, sequence, tallies
from kto_ray.store.joining import Judged
from kto_ray.store.mapping import feedback_columns, feedback_of
from kto_ray.store.schema import completions, feedback
from kto_ray.store.tallies import Tally

DEFAULT = FeedbackSection()


class Recorded(enum.StrEnum):
    RECORDED = "recorded"
    PENDING = "pending"  # its completion is not known yet
    DUPLICATE = "duplicate"  # the same idempotency key and body again


@dataclass(frozen=True, slots=True)
class Receipt:
    """What came of an event. `label` is what it makes by itself (up, down, edit), None where it will not train: `why`
    says so in words."""

    feedback_id: str
    completion_id: str | None
    status: Recorded
    label: str | None = None
    why: str | None = None


class KeyReused(ValueError):
    """An idempotency key came again with another body."""


class TooManyEvents(ValueError):
    """A completion has had all that one user may say of it."""


class TooLong(ValueError):
    """An edit or a comment is longer than may be; `field` names it."""

    def __init__(self, field: str, length: int, limit: int) -> None:
        super().__init__(f"{field} has {length} characters, above the limit of {limit}; shorten it")
        self.field = field


def record(tx: sa.Connection, event: Feedback, rules: FeedbackSection = DEFAULT) -> Receipt:
    """Append an event, exactly once per idempotency key of its sender, while that lasts and the event stands.

    Raises:
        KeyReused: the key is known with another body.
        TooLong, TooManyEvents: it is beyond what `rules` take.
    """
    _refuse_long(event, rules)
    known = _known(tx, event, rules)
    if known is not None:
        return _repeat(tx, known, event, rules)
    answers = joining.meant(tx, event, rules)
    looked = joining.place(tx, event, answers[0], rules) if answers else quarantine.Looked(event)
    # Before the number is taken: in this order the labels are made.
    labels.lock(tx, {a.id for a in answers} | {of for _, of in looked.frees if of is not None})
    _refuse_many(tx, event, answers, rules)
    placed = looked.event
    try:
        with tx.begin_nested():
            [seq] = sequence.take(tx)
            columns = feedback_columns(placed, answers[0].id if answers else None)
            tx.execute(feedback.insert().values(**{**columns, "seq": seq}))
    except sa.exc.IntegrityError:
        # On PostgreSQL another transaction may have committed the same key since we looked.
        known = _known(tx, event, rules)
        if known is None:
            raise
        return _repeat(tx, known, event, rules)
    if not answers:
        tallies.add(tx, Tally(stored=1, pending=1))
        return _receipt(placed, None, Recorded.PENDING)
    quarantine.free(tx, looked.frees)
    change = Tally(stored=1) + joining.marks(placed) + joining.spread(tx, placed, answers, rules)
    tallies.add(tx, change + labels.refresh(tx, [answer.id for answer in answers]))
    return _receipt(placed, answers[0], Recorded.RECORDED)


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


def _refuse_long(event: Feedback, rules: FeedbackSection) -> None:
    for field, text, limit in (("text", event.text, rules.max_text), ("comment", event.comment, rules.max_comment)):
        if text is not None and len(text) > limit:
            raise TooLong(field, len(text), limit)


def _refuse_many(tx: sa.Connection, event: Feedback, answers: Sequence[Judged], rules: FeedbackSection) -> None:
    """Strangers share one allowance, so that they never use up that of who received the answer; so do those who speak
    before the answer is there."""
    f = feedback.c
    on: sa.ColumnElement[bool]
    if answers:
        on = (f.completion_id == answers[0].id) & f.parent.is_(None)
        user = attributed(answers[0], event).user
        own = f.user.is_not_distinct_from(user) & f.principal.is_not_distinct_from(event.principal)
        heard = theirs(answers[0], event) or event.reviewer
        on &= own if heard else f.held_why == Why.STRANGER.value
    elif event.completion_id is not None:
        on = f.named_completion == event.completion_id
    elif event.external is not None:
        ref = event.external
        on = (f.external_system == ref.system) & (f.external_conversation == ref.conversation)
        on &= f.external_message.is_not_distinct_from(ref.message) & f.completion_id.is_(None)
        on &= f.user.is_not_distinct_from(event.user) & f.principal.is_not_distinct_from(event.principal)
    else:
        return
    some = sa.select(f.id).where(on).limit(rules.max_events).subquery()
    if int(tx.execute(sa.select(sa.func.count()).select_from(some)).scalar_one()) >= rules.max_events:
        raise TooManyEvents(
            f"this answer has had {rules.max_events} events of its user, as many as may be (feedback.max_events); "
            "the last that stands counts"
        )


def _known(tx: sa.Connection, event: Feedback, rules: FeedbackSection) -> Any:
    """The event that was recorded under the same key of the same sender. One that is withdrawn, or as old as a key
    lasts, gives its key free."""
    if event.idempotency_key is None:
        return None
    f = feedback.c
    same = (f.idempotency_key == event.idempotency_key) & (f.key_owner == event.key_owner)
    known = tx.execute(sa.select(feedback).where(same)).mappings().first()
    if known is None:
        return None
    lasts = event.created_at - known["created_at"] < rules.idempotency_days * DAY_S
    if known["withdrawn_at"] is None and lasts:
        return known
    tx.execute(feedback.update().where(f.id == known["id"]).values(idempotency_key=None))
    return None


def _repeat(tx: sa.Connection, known: Any, event: Feedback, rules: FeedbackSection) -> Receipt:
    if known["body_hash"] != event.body_hash:
        raise KeyReused(
            f"Idempotency-Key {event.idempotency_key!r} was used with another body; send a new key for a new event"
        )
    before = feedback_of(known)
    joined = known["completion_id"]
    answers = joining.meant(tx, replace(before, completion_id=joined), rules) if joined is not None else []
    return _receipt(before, answers[0] if answers else None, Recorded.DUPLICATE)


def _receipt(event: Feedback, answer: Judged | None, status: Recorded) -> Receipt:
    if answer is None:
        return Receipt(event.id, event.completion_id, status, None, "its answer is not known yet")
    why = silence(answer, replace(event, completion_id=answer.id))
    label = None if why else labels_of(answer, [replace(event, completion_id=answer.id)])[0].verdict.value
    return Receipt(event.id, answer.id, status, label, why)
