"""What users' own judgements in a stage come to: the mean of what stands when their trial is due, to a minute, however
late it is settled. What quarantine made of them is of the time of settling."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import sqlalchemy as sa

from kto_ray.feedback.labels import labels as labels_of
from kto_ray.records.completions import Arm
from kto_ray.records.labels import Verdict
from kto_ray.records.rollouts import RolloutKind, RolloutState
from kto_ray.store.among import among
from kto_ray.store.exposed import challenger_of, of_stage
from kto_ray.store.said import as_of, said
from kto_ray.store.schema import completions, feedback, labels, trials

LATE_S = 60.0  # a trial that is settled later than this is read from the log

c, l, t = completions.c, labels.c, trials.c  # noqa: E741


def means(tx: sa.Connection, state: RolloutState, due: Mapping[str, float | None], now: float) -> dict[str, float]:
    """The mean of each user's judgements of answers from the first on that counts; who has none is not there. An edit
    counts as a down: the answer was not good enough.

    Args:
        due: users, and when their trials are due (seconds since the epoch); None: at once, by what stands now.
    """
    late = {user: at for user, at in due.items() if at is not None and now - at > LATE_S}
    return _now(tx, state, [user for user in due if user not in late]) | _then(tx, state, late)


def named(state: RolloutState) -> sa.ColumnElement[bool]:
    """Labels of a rollout's answers. A user may be in a test and in a holdback's other arm."""
    return (l.rollout if state.kind is RolloutKind.TEST else l.holdback) == state.id


def _arm(state: RolloutState) -> sa.ColumnElement[str]:
    """Of a user's trial, which may not be settled yet."""
    return sa.case((t.challenger, challenger_of(state).value), else_=Arm.CHAMPION.value)


def _now(tx: sa.Connection, state: RolloutState, users: Sequence[str]) -> dict[str, float]:
    """By the labels, which are what stands."""
    if not users:
        return {}
    open_ = of_stage(trials, state) & (t.user == l.asker) & t.place.is_(None) & t.known
    counted = (l.arm == _arm(state)) & (l.asked_seq >= t.first_seq)
    theirs = named(state) & among(tx, l.asker, users) & ~l.reviewer
    mean = sa.func.avg(sa.case((l.verdict == Verdict.UP.value, 1.0), else_=0.0)).label("mean")
    query = sa.select(l.asker, mean).select_from(labels.join(trials, open_ & counted)).where(theirs)
    return {row.asker: float(row.mean) for row in tx.execute(query.group_by(l.asker))}


def _then(tx: sa.Connection, state: RolloutState, due: Mapping[str, float]) -> dict[str, float]:
    """By the log, of what stood when the trials were due: what is said while a controller is away changes none."""
    if not due:
        return {}
    open_ = of_stage(trials, state) & (t.user == c.user) & t.place.is_(None) & t.known
    counted = (c.arm == _arm(state)) & (c.seq >= t.first_seq)
    spoken = sa.select(feedback.c.completion_id).where(feedback.c.completion_id == c.id).exists()
    columns = (c.id, c.text, c.tool_calls, c.status, c.task, c.forced, c.user, c.principal)
    query = sa.select(*columns).join_from(completions, trials, open_ & counted)
    of = c.rollout if state.kind is RolloutKind.TEST else c.holdback
    theirs = (of.concat("") == state.id) & among(tx, c.user, due)  # by the users: SQLite would walk the whole test
    answers = tx.execute(query.where(theirs, spoken)).all()
    events, ups = said(tx, [answer.id for answer in answers]), defaultdict[str, list[bool]](list)
    for answer in answers:
        for label in labels_of(answer, as_of(events.get(answer.id, ()), due[answer.user])):
            if label.user == answer.user and not label.reviewer:
                ups[answer.user].append(label.verdict is Verdict.UP)
    return {user: sum(theirs) / len(theirs) for user, theirs in ups.items()}
