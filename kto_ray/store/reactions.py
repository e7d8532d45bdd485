"""What the users of an A/B test did about their answers: asked for another, disagreed, edited one, gave the thumb that
an answer asked for. Read once a user, a fixed time after the first answer, of that time alone, and counted for good.

Everybody who counts is read, whether they did anything or not: those who react do not choose themselves. A user's own
row says when it is time, so that no event need leave a mark; one that is committed after it was read counts no more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from typing import Any

import sqlalchemy as sa

from kto_ray.records.completions import Arm
from kto_ray.records.feedback import FeedbackKind, Held, Signal
from kto_ray.records.labels import Verdict
from kto_ray.records.rollouts import RolloutState
from kto_ray.records.trials import REACTIONS, SOLICITED
from kto_ray.store import exposed
from kto_ray.store.among import among
from kto_ray.store.exposed import challenger_of, of_stage
from kto_ray.store.schema import UNREAD, completions, feedback, labels, trials

USERS = 1_000  # read in one go
SIGNALS = (Signal.REGENERATED.value, Signal.DISAGREED.value)

c, f, l, t = completions.c, feedback.c, labels.c, trials.c  # noqa: E741


def unread(state: RolloutState, now: float) -> sa.Select[Any]:
    """The users whose time is over and who have not been read, the first ones first."""
    query = sa.select(t.user, t.challenger).where(of_stage(trials, state), UNREAD, t.react_by <= now)
    return query.order_by(t.react_by, t.user)


def read(tx: sa.Connection, state: RolloutState, now: float) -> None:
    """Read some of those users. Locked, so that an erasure of one waits, and nobody is counted under two names."""
    rows = tx.execute(unread(state, now).limit(USERS).with_for_update()).all()
    if not rows:
        return
    did = defaultdict[str, set[str]](set)
    for user, what in _done(tx, state, [row.user for row in rows]):
        did[user].add(what)
    order = (*REACTIONS, *SOLICITED)
    found = [{"of": row.user, "did": [what for what in order if what in did[row.user]]} for row in rows]
    mine = of_stage(trials, state) & (t.user == sa.bindparam("of"))
    tx.execute(trials.update().where(mine).values(reactions=sa.bindparam("did")), found)
    for challenger in (False, True):
        arm = [did[row.user] for row in rows if row.challenger is challenger]
        more = {what: sum(what in theirs for theirs in arm) for what in order}
        exposed.add(tx, state, challenger, {"observed": len(arm), **more})


def _done(tx: sa.Connection, state: RolloutState, users: Collection[str]) -> Iterator[tuple[str, str]]:
    """Users, each with a thing that they did."""
    yield from _signals(tx, state, users)
    yield from _edits(tx, state, users)
    yield from _ratings(tx, state, users)


def _signals(tx: sa.Connection, state: RolloutState, users: Collection[str]) -> Iterator[tuple[str, str]]:
    sent = (f.kind == FeedbackKind.SIGNAL.value) & f.signal.in_(SIGNALS) & f.completion_id.is_not(None)
    stands = f.withdrawn_at.is_(None) & (f.held.is_(None) | (f.held == Held.RELEASED.value)) & ~f.reviewer
    given = sa.select(f.completion_id, f.user, f.signal, f.created_at).where(among(tx, f.user, users), sent, stands)
    signals = tx.execute(given).all()  # first, for they are few beside a test's answers
    if not signals:
        return
    named = among(tx, c.id, {row.completion_id for row in signals}) & (c.rollout.concat("") == state.id)  # by id
    query = sa.select(c.id, c.user, t.react_by).join_from(completions, trials, _theirs(state)).where(named)
    due = {(row.id, row.user): row.react_by for row in tx.execute(query)}
    for row in signals:
        if row.created_at <= due.get((row.completion_id, row.user), float("-inf")):
            yield row.user, row.signal


def _edits(tx: sa.Connection, state: RolloutState, users: Collection[str]) -> Iterator[tuple[str, str]]:
    """An edit that stands and changes what is seen is a label."""
    edited = (l.verdict == Verdict.EDIT.value) & ~l.reviewer & (l.at <= t.react_by)
    query = sa.select(l.asker).join_from(labels, completions, l.completion_id == c.id)
    theirs = (l.rollout == state.id) & (c.rollout == state.id) & among(tx, l.asker, users)
    for user in tx.execute(query.join(trials, _theirs(state)).where(theirs, edited).distinct()).scalars():
        yield user, "edited"


def _ratings(tx: sa.Connection, state: RolloutState, users: Collection[str]) -> Iterator[tuple[str, str]]:
    """Of the first answer that asked each for a thumb."""
    asked = c.solicited & (c.rollout == state.id) & among(tx, c.user, users) & (c.created_at <= t.react_by)
    own = (l.completion_id == c.id) & (l.user == c.user) & ~l.reviewer & (l.at <= t.react_by)
    query = sa.select(c.seq, c.user, l.verdict).join_from(completions, trials, _theirs(state)).outerjoin(labels, own)
    seen = set[str]()
    # Ordered here: SQLite would go through the whole test in that order.
    for row in sorted(tx.execute(query.where(asked)), key=lambda row: row.seq):
        if row.user in seen:
            continue
        seen.add(row.user)
        yield row.user, "solicited"
        if row.verdict is not None:
            yield row.user, "rated"
        if row.verdict == Verdict.UP.value:
            yield row.user, "rated_up"


def _theirs(state: RolloutState) -> sa.ColumnElement[bool]:
    """A completion in its user's trial: of their arm, from the first on that counts, and asked for by a person."""
    arm = sa.case((t.challenger, challenger_of(state).value), else_=Arm.CHAMPION.value)
    mine = of_stage(trials, state) & (t.user == c.user)
    return mine & (c.arm == arm) & (c.seq >= t.first_seq) & c.task.is_(None) & ~c.forced
