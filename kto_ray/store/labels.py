"""The one view of what counts: labels as `kto_ray.feedback.labels` defines them, kept beside the log.

Whoever changes what a label depends on calls `refresh` in the same transaction; nobody else writes the table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa

from kto_ray.feedback.labels import examples as examples_of
from kto_ray.feedback.labels import labels as labels_of
from kto_ray.records.completions import Arm, Completion
from kto_ray.records.examples import Example
from kto_ray.records.feedback import Feedback
from kto_ray.records.labels import Label, Verdict
from kto_ray.records.trials import NewUsers, Votes
from kto_ray.store import trials
from kto_ray.store.among import among
from kto_ray.store.mapping import completion_of, feedback_of
from kto_ray.store.said import said
from kto_ray.store.schema import SERVED, completions, feedback, labels, rounds
from kto_ray.store.tallies import Tally

CHUNK = 500  # completions of a query
DAY_S = 86_400.0
LATELY_S, YOUNG_S = 14 * DAY_S, 2 * DAY_S


def refresh(tx: sa.Connection, completion_ids: Iterable[str]) -> Tally:
    """Bring the labels of these completions up to date with the log; returns by how much the totals change."""
    ids = sorted(set(completion_ids))
    change = Tally()
    for begin in range(0, len(ids), CHUNK):
        change += _refresh(tx, ids[begin : begin + CHUNK])
    return change


def of(tx: sa.Connection, completion_id: str) -> list[Label]:
    """The labels of one completion, ordered by user, without edited texts."""
    query = sa.select(labels).where(labels.c.completion_id == completion_id).order_by(labels.c.user)
    return [
        Label(row["completion_id"], row["user"], Verdict(row["verdict"]), row["at"], None, row["seq"], row["reviewer"])
        for row in tx.execute(query).mappings()
    ]


def examples(tx: sa.Connection, keys: tuple[str, str | None], until: int | None = None) -> list[Example]:
    """What a key range of completions teaches, by the feedback up to the number `until` in the order of the store."""
    return [e for completion, events in with_feedback(tx, *keys, until) for e in examples_of(completion, events)]


def key_ranges(tx: sa.Connection, events: int) -> list[tuple[str, str | None]]:
    """Split the completions that have feedback into ranges [low, high) of about `events` feedback events each.

    One pass over an index, whatever the number of ranges. The events of a completion are never torn apart. The last
    range is open: its high is None. No feedback gives no range.
    """
    number = sa.func.row_number().over(order_by=feedback.c.completion_id) - 1
    numbered = (
        sa.select(feedback.c.completion_id, number.label("number"))
        .where(feedback.c.completion_id.is_not(None))
        .subquery()
    )
    every = sa.select(numbered.c.completion_id).where(numbered.c.number % events == 0).distinct()
    lows = [str(low) for low in tx.execute(every.order_by(numbered.c.completion_id)).scalars()]
    return list(zip(lows, [*lows[1:], None], strict=True)) if lows else []


def with_feedback(
    tx: sa.Connection, low: str, high: str | None, until: int | None = None
) -> list[tuple[Completion, list[Feedback]]]:
    """The completions of a key range, each with its feedback log in order of arrival; events up to `until` only."""
    chosen = feedback.c.completion_id >= low
    if high is not None:
        chosen = chosen & (feedback.c.completion_id < high)
    if until is not None:
        chosen = chosen & (feedback.c.seq <= until)
    events = _events(tx, chosen)
    within = completions.c.id >= low
    if high is not None:
        within = within & (completions.c.id < high)
    # With bounds of its own: PostgreSQL would hash the whole log for every range.
    has_feedback = completions.c.id.in_(sa.select(feedback.c.completion_id).where(chosen))
    query = sa.select(completions).where(within, has_feedback).order_by(completions.c.id)
    return [(completion_of(row), events[row["id"]]) for row in tx.execute(query).mappings() if row["id"] in events]


def _events(tx: sa.Connection, chosen: sa.ColumnElement[bool]) -> dict[str, list[Feedback]]:
    """Feedback by completion, each in order of arrival."""
    arrival = (feedback.c.completion_id, feedback.c.seq)  # by completion first, as the index is
    events: dict[str, list[Feedback]] = {}
    for row in tx.execute(sa.select(feedback).where(chosen).order_by(*arrival)).mappings():
        events.setdefault(row["completion_id"], []).append(feedback_of(row))
    return events


def votes(
    tx: sa.Connection, now: float, window_s: float, new_users: NewUsers = False, settle_s: float = 0.0
) -> Votes | None:
    """Who judged the loop's own answers of about the last `window_s` seconds, 14 days at most, as a test would have
    counted them that had begun then: who was seen before, but of `new_users`, and judged within `settle_s` of their
    first answer, or whenever they liked where that is 0. None where the service has answered for less than two days, so
    that nobody can tell."""
    c, l = completions.c, labels.c  # noqa: E741
    first = sa.select(c.created_at).where(SERVED).order_by(c.created_at).limit(1)
    began = tx.execute(first).scalar()
    if began is None or now - began < YOUNG_S:
        return None
    window_s = min(window_s, LATELY_S, (now - began) / 2)
    since = now - window_s
    up = sa.func.avg(sa.case((l.verdict == Verdict.UP.value, 1.0), else_=0.0)).label("up")
    decided = (feedback.c.completion_id == l.completion_id) & (feedback.c.seq == l.seq)
    theirs = l.asker.is_not(None) & ~l.reviewer & l.arm.not_in(_NOT_DRAWN) & (c.created_at >= since)
    said = labels.join(feedback, decided).join(completions, c.id == l.completion_id)
    lately = theirs & (feedback.c.created_at >= since)
    each = sa.select(l.asker, up, sa.func.max(c.principal).label("principal")).where(lately)
    if settle_s:
        begun = _first_answers(sa.select(l.asker).select_from(said).where(lately).distinct().subquery(), since)
        each = each.select_from(said.join(begun, begun.c.user == l.asker))
        each = each.where(feedback.c.created_at <= begun.c.first_at + settle_s)
    else:
        each = each.select_from(said)
    each_one = each.group_by(l.asker).subquery()
    counted = sa.select(sa.func.count(), sa.func.avg(each_one.c.up))
    if new_users is not True:
        earlier = completions.alias()
        known = sa.select(earlier.c.id).where(earlier.c.user == each_one.c.asker, earlier.c.created_at < since)
        counted = counted.where(known.exists() | each_one.c.principal.in_(new_users or ()))
    number, rate = tx.execute(counted.select_from(each_one)).one()
    return Votes(number, float(rate) if number else 0.5, window_s / DAY_S)


_NOT_DRAWN = (Arm.PINNED.value, Arm.IMPORT.value)


def _first_answers(askers: sa.Subquery, since: float) -> sa.Subquery:
    """When each got their first answer from then on that a test would count."""
    a = completions.alias()
    counts = a.c.arm.not_in(_NOT_DRAWN) & a.c.task.is_(None) & ~a.c.forced & (a.c.created_at >= since)
    theirs = sa.select(a.c.user, sa.func.min(a.c.created_at).label("first_at"))
    return theirs.join_from(askers, a, a.c.user == askers.c.asker).where(counts).group_by(a.c.user).subquery()


def lock(tx: sa.Connection, completion_ids: Iterable[str]) -> None:
    """Hold completions before their feedback is touched: whoever changes both takes them in this order, so that no two
    wait for each other. SQLite's writers are one after the other anyway."""
    if tx.dialect.name == "sqlite":
        return
    ids = sorted(set(completion_ids))
    for begin in range(0, len(ids), CHUNK):
        chosen = among(tx, completions.c.id, ids[begin : begin + CHUNK])
        query = sa.select(completions.c.id).where(chosen).order_by(completions.c.id)
        tx.execute(query.with_for_update(key_share=True)).all()


def _refresh(tx: sa.Connection, ids: Sequence[str]) -> Tally:
    c = completions.c
    # Locked, so that two transactions with feedback on one completion see each other's, one after the other. No key
    # update: their new rows of feedback already hold the key.
    names = ("id", "text", "tool_calls", "status", "task", "forced", "rollout", "holdback", "arm", "user", "principal")
    query = sa.select(*(c[name] for name in names), c.seq).where(among(tx, c.id, ids))
    answers = tx.execute(query.order_by(c.id).with_for_update(key_share=True)).all()
    events = said(tx, ids)
    ours = among(tx, labels.c.completion_id, ids)
    known = {
        (row.completion_id, row.user, row.verdict, row.seq): row.since
        for row in tx.execute(sa.select(labels).where(ours))
    }
    round_now = tx.execute(sa.select(sa.func.coalesce(sa.func.max(rounds.c.id), 0))).scalar_one()
    fresh = [
        _columns(label, answer, known.get((label.completion_id, label.user, label.verdict.value, label.seq), round_now))
        for answer in answers
        for label in labels_of(answer, events.get(answer.id, []))
    ]
    if known:
        tx.execute(labels.delete().where(ours))
    if fresh:
        tx.execute(labels.insert(), fresh)
        trials.voted(tx, fresh)
    by = Counter(row["verdict"] for row in fresh)
    by.subtract(verdict for _, _, verdict, _ in known)
    came = sum(row["since"] == round_now for row in fresh) - sum(since == round_now for since in known.values())
    return Tally(up=by[Verdict.UP.value], down=by[Verdict.DOWN.value], edits=by[Verdict.EDIT.value], came=came)


def _columns(label: Label, answer: Any, since: int) -> dict[str, Any]:
    return {
        "completion_id": label.completion_id,
        "user": label.user,
        "verdict": label.verdict.value,
        "at": label.at,
        "seq": label.seq,
        "reviewer": label.reviewer,
        "rollout": answer.rollout,
        "holdback": answer.holdback,
        "arm": answer.arm,
        "asker": answer.user,
        "asked_seq": answer.seq,
        "since": since,
    }
