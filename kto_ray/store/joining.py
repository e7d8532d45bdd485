"""Which completion a judgement means; what comes before its completion is pending, and is joined when that comes or,
where two transactions missed each other, afterwards. What waits too long is an orphan."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import sqlalchemy as sa

from kto_ray.config.capture import FeedbackSection
from kto_ray.feedback.labels import Answer, attributed, of_conversation, theirs
from kto_ray.feedback.quarantine import Why
from kto_ray.records.completions import Completion
from kto_ray.records.feedback import Feedback, Held
from kto_ray.store import labels, sequence, tallies
from kto_ray.store.among import among
from kto_ray.store.mapping import feedback_columns, feedback_of
from kto_ray.store.quarantine import Looking
from kto_ray.store.schema import PENDING, completions, feedback
from kto_ray.store.tallies import Tally

LOOK = 1000  # pending events at once
TURNS = 100  # of a conversation that a judgement of it is spread to, the newest

c, f = completions.c, feedback.c


class Judged(Answer, Protocol):
    """A completion as far as it matters who judges it, and from where it came."""

    @property
    def arm(self) -> str: ...


def meant(tx: sa.Connection, events: Sequence[Feedback], rules: FeedbackSection) -> list[Sequence[Judged]]:
    """The completion that each event names; of one on a conversation, the turns that it speaks of, newest first.
    Nothing where none is known yet."""
    query = sa.select(c.id, c.text, c.tool_calls, c.status, c.task, c.forced, c.user, c.principal, c.arm)
    ids = {event.completion_id for event in events if event.completion_id is not None}
    named = {row.id: row for row in tx.execute(query.where(among(tx, c.id, ids))).all()} if ids else {}

    def of(event: Feedback) -> Sequence[Judged]:
        if event.completion_id is not None:
            return [named[event.completion_id]] if event.completion_id in named else []
        if event.external is None:
            return []
        turns = TURNS if of_conversation(event) and rules.spread == "all" else 1
        return tx.execute(query.where(_named_by(event)).order_by(c.seq.desc()).limit(turns)).all()

    return [of(event) for event in events]


def place(looking: Looking, event: Feedback, answer: Judged) -> Feedback:
    """An event on its completion: whose it is, and whether it counts. A stranger's is kept and never does."""
    event = attributed(answer, event)
    if not theirs(answer, event) and not event.reviewer:
        event = replace(event, held=Held.DROPPED, held_why=Why.STRANGER.value)
        looking.saw(event)
        return event
    return looking.at(event, answer.arm)


def marks(event: Feedback) -> Tally:
    """What an event adds to the totals by where it stands."""
    return Tally(held=event.held is Held.HELD, strangers=event.held_why == Why.STRANGER)


def spread(tx: sa.Connection, event: Feedback, answers: Sequence[Judged], rules: FeedbackSection) -> Tally:
    """Have a judgement of a conversation speak of its turns, by an event each; returns the change of the totals."""
    if not of_conversation(event) or event.held_why == Why.STRANGER or rules.spread == "none":
        return Tally()
    added = Tally()
    for number, (answer, seq) in enumerate(zip(answers, sequence.take(tx, len(answers)), strict=True)):
        child = attributed(answer, _child(event, number, answer))
        if not theirs(answer, child) and not child.reviewer:
            child = replace(child, held=Held.DROPPED, held_why=Why.STRANGER.value)
        tx.execute(feedback.insert().values(**{**feedback_columns(child, answer.id), "seq": seq}))
        added += Tally(stored=1, withdrawn=child.withdrawn_at is not None) + marks(child)
    return added


def arrived(tx: sa.Connection, fresh: Sequence[Completion], rules: FeedbackSection) -> Tally:
    """Join the feedback that was waiting for new completions; returns by how much the totals change."""
    # What it names is found by the index of names; whether it still waits is asked of the few rows that come.
    named = among(tx, f.named_completion, [completion.id for completion in fresh])
    rows = [*tx.execute(sa.select(feedback).where(named)).mappings()]
    talks = {(one.external.system, one.external.conversation) for one in fresh if one.external is not None}
    if talks:
        same = sa.tuple_(f.external_system, f.external_conversation).in_(talks)
        rows += tx.execute(sa.select(feedback).where(same)).mappings()
    waiting = [feedback_of(row) for row in rows if row["completion_id"] is None and row["held"] is None]
    pairs = [(event, [one]) for event in waiting if (one := _answer_of(event, fresh)) is not None]
    return _join(tx, pairs, rules) if pairs else Tally()


def _answer_of(event: Feedback, fresh: Sequence[Completion]) -> Completion | None:
    """Which of some completions an event was waiting for."""
    if event.completion_id is not None:
        return next((one for one in fresh if one.id == event.completion_id), None)
    return next((one for one in fresh if _may_mean(event, one)), None)


@dataclass(frozen=True, slots=True)
class Overlooked:
    """Of some pending events: those whose completion is there, and those that have waited too long. `after` says where
    to go on; "" when all have been looked at."""

    found: tuple[str, ...]
    stale: tuple[str, ...]
    after: str


def overlooked(tx: sa.Connection, after: str = "", before: float = 0.0) -> Overlooked:
    """Look at the next `LOOK` pending events behind the id `after`, in a reading transaction: two concurrent PostgreSQL
    transactions, an event's and its completion's, can miss each other; and what came before the time `before` (seconds
    since the epoch) has waited too long."""
    batch = sa.select(feedback).where(PENDING, f.id > after).order_by(f.id).limit(LOOK).subquery()
    b = batch.c
    same = (
        (c.external_system == b.external_system)
        & (c.external_conversation == b.external_conversation)
        & ((c.external_message == b.external_message) | (b.external_message.is_(None) & c.task.is_(None)))
        & c.principal.is_not_distinct_from(b.principal)
        & (b.user.is_(None) | b.reviewer | (c.user == b.user))
    )
    named = sa.exists().where(c.id == b.named_completion)
    referred = sa.exists().where(same)
    there = sa.case((b.named_completion.is_not(None), named), else_=referred)
    rows = tx.execute(sa.select(b.id, b.created_at, there.label("there")).order_by(b.id)).all()
    return Overlooked(
        found=tuple(row.id for row in rows if row.there),
        stale=tuple(row.id for row in rows if not row.there and row.created_at < before),
        after=rows[-1].id if len(rows) == LOOK else "",
    )


def join(tx: sa.Connection, found: Iterable[str], rules: FeedbackSection) -> None:
    """Join events that still wait with their completions, which are there."""
    rows = tx.execute(sa.select(feedback).where(PENDING, among(tx, f.id, list(found))).order_by(f.seq)).mappings()
    events = [feedback_of(row) for row in rows]
    pairs = [(event, of) for event, of in zip(events, meant(tx, events, rules), strict=True) if of]
    labels.lock(tx, (answer.id for _, answers in pairs for answer in answers))
    tallies.add(tx, _join(tx, pairs, rules))


def expire(tx: sa.Connection, stale: Iterable[str]) -> None:
    """Have events that have waited too long wait no more: a completion that comes later finds them orphans."""
    orphan = {"held": Held.DROPPED.value, "held_why": Why.ORPHAN.value}
    gone = tx.execute(feedback.update().where(PENDING, among(tx, f.id, list(stale))).values(**orphan)).rowcount
    tallies.add(tx, Tally(pending=-gone, orphans=gone))


def _join(tx: sa.Connection, pairs: Sequence[tuple[Feedback, Sequence[Judged]]], rules: FeedbackSection) -> Tally:
    change = Tally()
    looking = Looking(tx, rules)
    for event, answers in sorted(pairs, key=lambda pair: pair[0].seq or 0):
        placed = place(looking, event, answers[0])
        held = {"held": placed.held and placed.held.value, "held_why": placed.held_why}
        values = {"completion_id": answers[0].id, "user": placed.user, "reviewer": placed.reviewer, **held}
        if tx.execute(feedback.update().where(PENDING, f.id == event.id).values(**values)).rowcount:
            change += Tally(pending=-1) + marks(placed) + spread(tx, placed, answers, rules)
    return change + labels.refresh(tx, {answer.id for _, answers in pairs for answer in answers})


def _child(event: Feedback, number: int, answer: Answer) -> Feedback:
    """An event on one turn; whoever withdraws, releases or drops that on the conversation means it too."""
    return Feedback(
        id=f"{event.id}-{number}",
        created_at=event.created_at,
        kind=event.kind,
        completion_id=answer.id,
        user=event.user,
        value=event.value,
        reason_codes=event.reason_codes,
        withdrawn_at=event.withdrawn_at,
        principal=event.principal,
        reviewer=event.reviewer,
        signal=event.signal,
        parent=event.id,
        held=event.held,
        held_why=event.held_why,
    )


def _named_by(event: Feedback) -> sa.ColumnElement[bool]:
    """The completions that an event's external reference means: of its own principal, and of its user where it names
    one. The references are clients' own, and whoever sends another's must not get their thumb."""
    ref = event.external
    assert ref is not None
    same = (c.external_system == ref.system) & (c.external_conversation == ref.conversation)
    same &= c.task.is_(None) if ref.message is None else c.external_message == ref.message
    same &= c.principal.is_not_distinct_from(event.principal)
    return same if event.user is None or event.reviewer else same & (c.user == event.user)


def _may_mean(event: Feedback, completion: Completion) -> bool:
    """The same of one completion."""
    ref, other = event.external, completion.external
    if ref is None or other is None or (ref.system, ref.conversation) != (other.system, other.conversation):
        return False
    spoken_of = completion.task is None if ref.message is None else ref.message == other.message
    theirs = event.user is None or event.reviewer or event.user == completion.user
    return spoken_of and theirs and event.principal == completion.principal
