"""What the users of an A/B test did about their answers: asked for another, disagreed, edited one, gave the thumb that
an answer asked for. Read once a user, a fixed time after the first answer, of that time alone, and counted for good.

Everybody who counts is read, whether they did anything or not: those who react do not choose themselves. A user's own
row says when it is time, so that no event need leave a mark; one that is committed after it was read counts no more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import sqlalchemy as sa

from kto_ray.feedback.labels import labels as labels_of
from kto_ray.records.completions import Arm
from kto_ray.records.feedback import FeedbackKind, Held, Signal
from kto_ray.records.labels import Verdict
from kto_ray.records.rollouts import RolloutState
from kto_ray.records.trials import REACTIONS, SOLICITED
from kto_ray.store import exposed
from kto_ray.store.among import among
from kto_ray.store.exposed import challenger_of, of_stage
from kto_ray.store.said import as_of, said
from kto_ray.store.schema import UNREAD, completions, feedback, trials

USERS = 1_000  # read in one go
DAY_S = 86_400.0
SIGNALS = (Signal.REGENERATED.value, Signal.DISAGREED.value)

c, f, t = completions.c, feedback.c, trials.c
# What decides who may judge an answer, and until when
ANSWER = (c.id, c.seq, c.text, c.tool_calls, c.status, c.task, c.forced, c.user, c.principal, t.react_by)


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
    stands = (f.held.is_(None) | (f.held == Held.RELEASED.value)) & ~f.reviewer
    columns = (f.completion_id, f.user, f.signal, f.created_at, f.withdrawn_at)
    signals = tx.execute(sa.select(*columns).where(among(tx, f.user, users), sent, stands, _lately(state))).all()
    due = {row.id: row for row in _answers(tx, state, {row.completion_id for row in signals})}
    for row in signals:
        of = due.get(row.completion_id)
        if of is None or of.user != row.user:
            continue
        if row.created_at <= of.react_by and (row.withdrawn_at is None or row.withdrawn_at > of.react_by):
            yield row.user, row.signal


def _edits(tx: sa.Connection, state: RolloutState, users: Collection[str]) -> Iterator[tuple[str, str]]:
    """An edit that stood and changes what is seen was a label."""
    sent = (f.kind == FeedbackKind.EDIT.value) & f.completion_id.is_not(None) & ~f.reviewer
    query = sa.select(f.completion_id).where(among(tx, f.user, users), sent, _lately(state))
    edited = set(tx.execute(query).scalars())
    for user, verdict in _verdicts(tx, _answers(tx, state, edited)).values():
        if verdict is Verdict.EDIT:
            yield user, "edited"


def _ratings(tx: sa.Connection, state: RolloutState, users: Collection[str]) -> Iterator[tuple[str, str]]:
    """Of the first answer that asked each for a thumb: the end of an answer asks, so that of one which came to none
    nobody saw it."""
    ended = c.solicited & (c.status == "complete") & (c.rollout == state.id) & (c.created_at <= t.react_by)
    query = sa.select(*ANSWER).join_from(completions, trials, _theirs(state)).where(ended, among(tx, c.user, users))
    first = dict[str, Any]()
    # Ordered here: SQLite would go through the whole test in that order.
    for row in sorted(tx.execute(query), key=lambda row: row.seq):
        first.setdefault(row.user, row)
    verdicts = _verdicts(tx, list(first.values()))
    for user, row in first.items():
        yield user, "solicited"
        if row.id in verdicts:
            yield user, "rated"
            if verdicts[row.id][1] is Verdict.UP:
                yield user, "rated_up"


def _lately(state: RolloutState) -> sa.ColumnElement[bool]:
    """What is said of a stage's answers is said after it began, by clocks that are right to a day: nobody's whole past
    is read."""
    return f.created_at > state.stage_started_at - DAY_S


def _answers(tx: sa.Connection, state: RolloutState, ids: Collection[str]) -> Sequence[Any]:
    """Of completions, named by their ids, those in their users' trials, with when the time of these is over."""
    if not ids:  # as mostly: few react beside a test's answers
        return ()
    named = among(tx, c.id, ids) & (c.rollout.concat("") == state.id)  # by id
    return tx.execute(sa.select(*ANSWER).join_from(completions, trials, _theirs(state)).where(named)).all()


def _verdicts(tx: sa.Connection, answers: Sequence[Any]) -> dict[str, tuple[str, Verdict]]:
    """What users thought of their answers when their time was over, however late this is read: by answer, the user and
    the verdict."""
    events = said(tx, [answer.id for answer in answers]) if answers else {}
    found = dict[str, tuple[str, Verdict]]()
    for answer in answers:
        for label in labels_of(answer, as_of(events.get(answer.id, ()), answer.react_by)):
            if label.user == answer.user and not label.reviewer:
                found[answer.id] = answer.user, label.verdict
    return found


def _theirs(state: RolloutState) -> sa.ColumnElement[bool]:
    """A completion in its user's trial: of their arm, from the first on that counts, and asked for by a person."""
    arm = sa.case((t.challenger, challenger_of(state).value), else_=Arm.CHAMPION.value)
    mine = of_stage(trials, state) & (t.user == c.user)
    return mine & (c.arm == arm) & (c.seq >= t.first_seq) & c.task.is_(None) & ~c.forced
