"""Quarantine beside the log: what waits for a person, why, and what they made of it. `kto_ray.feedback.quarantine`
decides; here its questions are put to indices, a bounded number of rows each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from kto_ray.config.capture import FeedbackSection
from kto_ray.feedback.quarantine import DAY_S, EDITS, Past, Why, ages, back, judges, settled, why_held
from kto_ray.records.completions import Arm
from kto_ray.records.feedback import Feedback, FeedbackKind, Held
from kto_ray.store import labels, tallies
from kto_ray.store.among import among, values
from kto_ray.store.mapping import feedback_of
from kto_ray.store.schema import EDIT, WAITING, feedback
from kto_ray.store.tallies import Tally

COUNTED = 10_000  # of the newest held events, by reason
SWEPT = 50  # events at once
CHUNK = 500  # events of one transaction's step
BEGAN = "began_at"  # of a connection's info: when the store was first told a judgement, which does not change
IMPORTED = "fb-import-"  # ids of what an operator imported: it says nothing of how long the store has listened

f = feedback.c


def _judgement_of(f: Any) -> sa.ColumnElement[bool]:
    """As `judges` says."""
    return sa.and_(f.value.is_not(None) | (f.kind == FeedbackKind.EDIT.value), ~f.reviewer, f.parent.is_(None))


def _aging(f: Any) -> sa.ColumnElement[bool]:
    """As `ages` says, of judgements whose answer is known."""
    stands = f.completion_id.is_not(None) & f.withdrawn_at.is_(None) & f.held.is_distinct_from(Held.DROPPED.value)
    return sa.and_(_judgement_of(f), stands)


_judgement = _judgement_of(feedback.c)
_told = _judgement & ~f.id.startswith(IMPORTED)


class Looking:
    """Looks at events one after the other, and remembers what it has read and seen: few questions, however many users
    come together."""

    def __init__(self, tx: sa.Connection, rules: FeedbackSection, coming: Sequence[Feedback] = ()) -> None:
        """
        Args:
            coming: new events that will be looked at, of which the past is read at once.
        """
        self._tx, self._rules = tx, rules
        self._own = _owns(tx, [event for event in coming if judges(event)], rules)

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
            firsts = [at for at in (own.first_at, event.created_at if ages(event) else None) if at is not None]
            first_at = min(firsts, default=None)
            self._own[event.user] = _Own((event, *own.today[: self._rules.flood_events - 1]), first_at)

    def _past(self, event: Feedback) -> Past:
        same = _namesakes(self._tx, event) if event.kind is FeedbackKind.EDIT else 0
        if event.user is None:
            return Past((), None, None, same)
        own = self._own.get(event.user) if event.seq is None else None  # one that has waited has a past of its own
        if own is None:
            own = _own_of(self._tx, event.user, event, self._rules)
            if event.seq is None:
                self._own[event.user] = own
        return Past(own.today, own.first_at, _began(self._tx), same)


@dataclass(frozen=True, slots=True)
class _Own:
    """A user's judgements of the last day, newest first, at most `flood_events`; and when they first judged an answer
    of theirs."""

    today: Sequence[Feedback]
    first_at: float | None


def _own_of(tx: sa.Connection, user: str, event: Feedback, rules: FeedbackSection) -> _Own:
    asked = {"user": user, "seq": event.seq or LAST, "since": event.created_at - DAY_S}
    today = [
        Feedback(row.id, row.created_at, FeedbackKind(row.kind), row.completion_id, user, row.value)
        for row in tx.execute(_TODAY, {**asked, "most": rules.flood_events})
    ]
    return _Own(today, tx.execute(_FIRST, asked).scalar())


def _owns(tx: sa.Connection, coming: Sequence[Feedback], rules: FeedbackSection) -> dict[str, _Own]:
    """`_own_of` for the users of new events, in two statements."""
    users = sorted({event.user for event in coming if event.user is not None})
    if not users:
        return {}
    each = values(tx, users)
    first = sa.select(f.created_at).where(_aging(f), f.user == each.c.value).order_by(f.created_at).limit(1)
    began = {row[0]: row[1] for row in tx.execute(sa.select(each.c.value, first.scalar_subquery()))}
    since = min(event.created_at for event in coming) - DAY_S
    newest = (f.created_at.desc(), f.seq.desc())
    rank = sa.func.row_number().over(partition_by=f.user, order_by=newest).label("rank")
    known = sa.select(f.id, f.created_at, f.kind, f.completion_id, f.user, f.value, rank)
    day = known.where(_judgement, among(tx, f.user, users), f.created_at > since).subquery()
    said: dict[str, list[Feedback]] = {user: [] for user in users}
    query = sa.select(day).where(day.c.rank <= rules.flood_events).order_by(day.c.user, day.c.rank)
    for name, at, kind, completion_id, user, value, _ in tx.execute(query):
        said[user].append(Feedback(name, at, FeedbackKind(kind), completion_id, user, value))
    return {user: _Own(today, began[user]) for user, today in said.items()}


def _free(tx: sa.Connection, user: str) -> None:
    """Let what a newcomer said count, with all that was spread from it, now that they came back."""
    if tx.execute(_NEWCOMER, {"user": user}).first() is not None:
        _settle(tx, _waiting(Why.NEWCOMER) & (f.user == user), Held.RELEASED)


@dataclass(frozen=True, slots=True)
class Sweep:
    """Judgements of a store's youth whose users have not come back: once it is settled, they wait too. `after` says
    where to go on, in the order of the store; None when all have been looked at."""

    found: tuple[str, ...]
    after: int | None


def youth(tx: sa.Connection, after: int, rules: FeedbackSection) -> Sweep:
    """Look at the next judgements of the store's youth, in a reading transaction; at none before it is settled, by the
    time of its newest judgement."""
    if rules.newcomer_days == 0:
        return Sweep((), None)
    began = _began(tx)
    newest = tx.execute(sa.select(f.created_at).where(_told).order_by(f.seq.desc()).limit(1)).scalar()
    if began is None or newest is None or not settled(newest, began, rules):
        return Sweep((), after)
    span = rules.newcomer_days * DAY_S
    batch = sa.select(feedback).where(f.seq > after).order_by(f.seq).limit(SWEPT).subquery()
    b, of_user = batch.c, feedback.alias()
    own = (of_user.c.user == b.user) & _aging(of_user.c)
    told = sa.select(of_user.c.created_at).where(own).limit(1)
    first = told.order_by(of_user.c.created_at).scalar_subquery()
    last = told.order_by(of_user.c.created_at.desc()).scalar_subquery()
    # What waits for its answer is looked at when that comes.
    counts = _judgement_of(b) & b.user.is_not(None) & b.completion_id.is_not(None) & b.held.is_(None)
    counts &= ~b.id.startswith(IMPORTED)
    once = sa.case((counts, sa.func.coalesce(last - first, 0.0) < span), else_=sa.false())
    rows = tx.execute(sa.select(b.id, b.seq, b.created_at, once.label("once")).order_by(b.seq)).all()
    over = not rows or rows[-1].created_at > began + 2 * span
    return Sweep(tuple(row.id for row in rows if row.once), None if over else rows[-1].seq)


def hold(tx: sa.Connection, found: Sequence[str], why: Why) -> None:
    """Have events wait that counted until now, and what was spread from them."""
    for ids in _chunks(list(found)):
        chosen = (f.id.in_(ids) | f.parent.in_(ids)) & f.held.is_(None)
        rows = tx.execute(sa.select(f.id, f.completion_id).where(chosen)).all()
        affected = {row.completion_id for row in rows if row.completion_id is not None}
        labels.lock(tx, affected)
        now_held = feedback.update().where(chosen).values(held=Held.HELD.value, held_why=why.value)
        tallies.add(tx, Tally(held=tx.execute(now_held).rowcount) + labels.refresh(tx, affected))


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


# Built once: to build a statement takes longer than SQLite takes to answer it. An event that has no place in the order
# yet comes after all.
LAST = 2**62
_theirs = _judgement & (f.user == sa.bindparam("user")) & (f.seq < sa.bindparam("seq"))
_FIRST = sa.select(f.created_at).where(_theirs, _aging(f)).order_by(f.created_at).limit(1)
_TODAY = (
    sa.select(f.id, f.created_at, f.kind, f.completion_id, f.value)
    .where(_theirs, f.created_at > sa.bindparam("since"))
    .order_by(f.created_at.desc(), f.seq.desc())
    .limit(sa.bindparam("most", type_=sa.Integer))
)
_NEWCOMER = sa.select(f.id).where(_waiting(Why.NEWCOMER), f.user == sa.bindparam("user")).limit(1)


def _began(tx: sa.Connection) -> float | None:
    known: float | None = tx.info.get(BEGAN)
    if known is None:
        known = tx.execute(sa.select(f.created_at).where(_told).order_by(f.seq).limit(1)).scalar()
        tx.info[BEGAN] = known
    return known


def _namesakes(tx: sa.Connection, event: Feedback) -> int:
    """Other users who gave this text among the newest edits of answers to their authors; nobody in particular is one.
    What waits for its answer, or is a stranger's, costs nothing to send: it has no part in what others may say."""
    on_own = f.completion_id.is_not(None) & f.held_why.is_distinct_from(Why.STRANGER.value)
    edits = sa.select(f.user, f.text).where(EDIT, _judgement, on_own, f.seq < (event.seq or LAST))
    newest = edits.order_by(f.seq.desc()).limit(EDITS).subquery()
    same = (newest.c.text == event.text) & newest.c.user.is_distinct_from(event.user)
    query = sa.select(sa.func.count(sa.distinct(sa.func.coalesce(newest.c.user, "")))).where(same)
    return int(tx.execute(query).scalar_one())


def _chunks(ids: Sequence[str]) -> Iterable[Sequence[str]]:
    return (ids[begin : begin + CHUNK] for begin in range(0, len(ids), CHUNK))
