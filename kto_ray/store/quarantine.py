"""Quarantine beside the log: what waits for a person, why, and what they made of it. `kto_ray.feedback.quarantine`
decides; here its questions are put to indices, a bounded number of rows each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from kto_ray.config.capture import FeedbackSection
from kto_ray.feedback.quarantine import DAY_S, EDITS, Past, Why, back, judges, why_held
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


class Looking:
    """Looks at events one after the other, and remembers what it has read and seen: one question a user, however many
    of theirs come together."""

    def __init__(self, tx: sa.Connection, rules: FeedbackSection) -> None:
        self._tx, self._rules = tx, rules
        self._own: dict[str, _Own] = {}

    def needs_rows(self, event: Feedback, rows: Sequence[Mapping[str, Any]]) -> bool:
        """Whether rows that are not written yet must be, for this event to be looked at."""
        if not judges(event):
            return False
        if event.kind is FeedbackKind.EDIT and any(row["kind"] == event.kind for row in rows):
            return True
        return any(row["user"] == event.user and row["held_why"] == Why.NEWCOMER for row in rows)

    def at(self, event: Feedback, arm: str) -> Feedback:
        """The event, held where it is to wait. Its completion (of `arm`) is known; what an operator imported is theirs
        to answer for. What its user said as a newcomer counts from now on if they have come back."""
        if not judges(event) or arm == Arm.IMPORT.value:
            self.saw(event)
            return event
        past = self._past(event)
        why = why_held(event, past, self._rules)
        if event.user is not None and past.first_at is not None and back(event, past, self._rules):
            _free(self._tx, event.user)
        self.saw(event)
        return event if why is None else replace(event, held=Held.HELD, held_why=why.value)

    def saw(self, event: Feedback) -> None:
        """Remember an event as its user's newest."""
        if event.seq is None and event.user in self._own and judges(event):
            own = self._own[event.user]
            first_at = event.created_at if own.first_at is None else own.first_at
            self._own[event.user] = _Own((event, *own.newest[: self._rules.flood_events - 1]), first_at)

    def _past(self, event: Feedback) -> Past:
        same = _namesakes(self._tx, event) if event.kind is FeedbackKind.EDIT else 0
        if event.user is None:
            return Past((), None, None, same)
        if event.seq is not None:  # it has waited: what came behind it is no past
            own = _own_of(self._tx, event.user, event, self._rules)
        elif (known := self._own.get(event.user)) is not None:
            own = known
        else:
            own = self._own[event.user] = _own_of(self._tx, event.user, event, self._rules)
        return Past(own.newest, own.first_at, _began(self._tx), same)


@dataclass(frozen=True, slots=True)
class _Own:
    """A user's judgements of the last day, newest first, at most `flood_events`; and when they first judged."""

    newest: Sequence[Feedback]
    first_at: float | None


def _own_of(tx: sa.Connection, user: str, event: Feedback, rules: FeedbackSection) -> _Own:
    theirs = _judgement & (f.user == user) & _before(event)
    first = sa.select(f.created_at).where(theirs).order_by(f.seq).limit(1).scalar_subquery()
    today = sa.select(f.id, f.created_at, f.kind, f.completion_id, f.value).where(theirs)
    newest = today.where(f.created_at > event.created_at - DAY_S).order_by(f.seq.desc()).limit(rules.flood_events)
    of, one = sa.select(first.label("first_at")).subquery(), newest.add_columns(f.seq).subquery()
    query = sa.select(of.c.first_at, one).select_from(of.outerjoin(one, sa.true())).order_by(one.c.seq.desc())
    rows = tx.execute(query).all()
    own = [
        Feedback(row.id, row.created_at, FeedbackKind(row.kind), row.completion_id, user, row.value)
        for row in rows
        if row.id is not None
    ]
    return _Own(own, rows[0].first_at)


def _free(tx: sa.Connection, user: str) -> None:
    """Let what a newcomer said count, with all that was spread from it, now that they came back."""
    waiting = _waiting(Why.NEWCOMER) & (f.user == user)
    if tx.execute(sa.select(f.id).where(waiting).limit(1)).first() is not None:
        _settle(tx, waiting, Held.RELEASED)


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
