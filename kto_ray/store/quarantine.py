"""Quarantine beside the log: what waits for a person, why, and what they made of it. `kto_ray.feedback.quarantine`
decides; here its questions are put to indices, a bounded number of rows each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import sqlalchemy as sa

from kto_ray.config.capture import FeedbackSection
from kto_ray.feedback.quarantine import EDITS, Past, Why, back, judges, why_held
from kto_ray.records.completions import Arm
from kto_ray.records.feedback import Feedback, FeedbackKind, Held
from kto_ray.store import labels, tallies
from kto_ray.store.mapping import feedback_of
from kto_ray.store.schema import EDIT, WAITING, feedback
from kto_ray.store.tallies import Tally

COUNTED = 10_000  # of the newest held events, by reason
CHUNK = 500  # events of one transaction's step
BEGAN = "began_at"  # of a connection's info: when the store was first told a judgement, which does not change
IMPORTED = "fb-import-"  # ids of what an operator imported: it says nothing of how long the store has listened

f = feedback.c
# As `judges` says.
_judgement = (f.value.is_not(None) | (f.kind == FeedbackKind.EDIT.value)) & ~f.reviewer & f.parent.is_(None)


@dataclass(frozen=True, slots=True)
class Looked:
    """An event after the look, held where it is to wait, and what it frees: what its user said as a newcomer, as
    (event, completion)."""

    event: Feedback
    frees: tuple[tuple[str, str | None], ...] = ()


def look(tx: sa.Connection, event: Feedback, arm: str, rules: FeedbackSection) -> Looked:
    """Look at an event whose completion (of `arm`) is known. What an operator imported is theirs to answer for."""
    if not judges(event) or arm == Arm.IMPORT.value:
        return Looked(event)
    past = _past(tx, event, rules)
    why = why_held(event, past, rules)
    looked = event if why is None else replace(event, held=Held.HELD, held_why=why.value)
    if event.user is None or past.first_at is None or not back(event, past, rules):
        return Looked(looked)
    return Looked(looked, _newcomer(tx, event.user))


def free(tx: sa.Connection, freed: Sequence[tuple[str, str | None]]) -> None:
    """Let what a newcomer said count, now that they came back."""
    for some in _chunks([event for event, _ in freed]):
        _settle(tx, _waiting(Why.NEWCOMER) & f.id.in_(some), Held.RELEASED)


def release(tx: sa.Connection, chosen: Sequence[str]) -> int:
    """Let held or dropped events count, and what was spread from them; returns how many of those chosen changed."""
    return _decide(tx, chosen, Held.RELEASED)


def drop(tx: sa.Connection, chosen: Sequence[str]) -> int:
    """Have held or released events never count; returns how many of those chosen changed."""
    return _decide(tx, chosen, Held.DROPPED)


def waiting(tx: sa.Connection, why: Why | None = None, user: str | None = None, limit: int = 100) -> list[Feedback]:
    """Held events, oldest first."""
    chosen = _waiting(why)
    if user is not None:
        chosen &= f.user == user
    return [
        feedback_of(row)
        for row in tx.execute(sa.select(feedback).where(chosen).order_by(f.seq).limit(limit)).mappings()
    ]


def by_reason(tx: sa.Connection) -> dict[str, int]:
    """How many of the newest COUNTED held events wait for which reason."""
    newest = sa.select(f.held_why).where(_waiting()).order_by(f.seq.desc()).limit(COUNTED).subquery()
    query = sa.select(newest.c.held_why, sa.func.count()).group_by(newest.c.held_why)
    return {str(why): int(number) for why, number in sorted(tx.execute(query).all())}


def _newcomer(tx: sa.Connection, user: str) -> tuple[tuple[str, str | None], ...]:
    """What a user said that waits for their coming back, with all that was spread from it."""
    rows = tx.execute(sa.select(f.id, f.completion_id).where(_waiting(Why.NEWCOMER), f.user == user))
    return tuple((str(row.id), row.completion_id) for row in rows)


def _waiting(why: Why | None = None) -> sa.ColumnElement[bool]:
    return WAITING if why is None else WAITING & (f.held_why == why.value)


def _decide(tx: sa.Connection, chosen: Sequence[str], to: Held) -> int:
    """What can never count (a stranger's, an orphan) is not for a person to decide."""
    other = Held.DROPPED if to is Held.RELEASED else Held.RELEASED
    open_ = f.held.in_((Held.HELD.value, other.value)) & f.held_why.not_in((Why.STRANGER.value, Why.ORPHAN.value))
    return sum(
        _settle(tx, (f.id.in_(ids) | f.parent.in_(ids)) & open_, to, f.id.in_(ids)) for ids in _chunks(list(chosen))
    )


def _settle(
    tx: sa.Connection, chosen: sa.ColumnElement[bool], to: Held, counted: sa.ColumnElement[bool] = sa.true()
) -> int:
    found = tx.execute(sa.select(f.id, f.completion_id, f.held, counted.label("counted")).where(chosen)).all()
    affected = {row.completion_id for row in found if row.completion_id is not None}
    labels.lock(tx, affected)
    for ids in _chunks([row.id for row in found]):
        tx.execute(feedback.update().where(f.id.in_(ids)).values(held=to.value))
    waited = sum(row.held == Held.HELD.value for row in found)
    tallies.add(tx, Tally(held=-waited) + labels.refresh(tx, affected))
    return sum(bool(row.counted) for row in found)


def _past(tx: sa.Connection, event: Feedback, rules: FeedbackSection) -> Past:
    own: list[Feedback] = []
    first_at = began_at = None
    if event.user is not None:
        theirs = _judgement & (f.user == event.user) & _before(event)
        newest = sa.select(f.id, f.seq, f.created_at, f.kind, f.completion_id, f.value).where(theirs)
        rows = tx.execute(newest.order_by(f.seq.desc()).limit(rules.flood_events)).all()
        own = [
            Feedback(row.id, row.created_at, FeedbackKind(row.kind), row.completion_id, event.user, row.value)
            for row in rows
        ]
        if len(own) == rules.flood_events:
            first = sa.select(f.created_at).where(theirs).order_by(f.seq).limit(1)
            first_at = tx.execute(first).scalar_one()
        elif own:
            first_at = own[-1].created_at
        began_at = _began(tx)
    same = _namesakes(tx, event) if event.kind is FeedbackKind.EDIT else 0
    return Past(own, first_at, began_at, same)


def _before(event: Feedback) -> sa.ColumnElement[bool]:
    """What was said before an event; one that has no place yet comes after all."""
    return sa.true() if event.seq is None else f.seq < event.seq


def _began(tx: sa.Connection) -> float | None:
    known: float | None = tx.info.get(BEGAN)
    if known is None:
        told = _judgement & ~f.id.startswith(IMPORTED)
        known = tx.execute(sa.select(f.created_at).where(told).order_by(f.seq).limit(1)).scalar()
        tx.info[BEGAN] = known
    return known


def _namesakes(tx: sa.Connection, event: Feedback) -> int:
    """Other users who gave this text among the newest edits."""
    edits = sa.select(f.id, f.user, f.text).where(EDIT, _judgement, _before(event))
    newest = edits.order_by(f.seq.desc()).limit(EDITS).subquery()
    same = (newest.c.text == event.text) & newest.c.user.is_distinct_from(event.user)
    query = sa.select(sa.func.count(sa.distinct(sa.func.coalesce(newest.c.user, newest.c.id)))).where(same)
    return int(tx.execute(query).scalar_one())


def _chunks(ids: Sequence[str]) -> Iterable[Sequence[str]]:
    return (ids[begin : begin + CHUNK] for begin in range(0, len(ids), CHUNK))
