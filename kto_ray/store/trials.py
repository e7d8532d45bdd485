"""Who got an answer in a stage of an A/B test, or a week of a holdback, and each user's one trial: settled a fixed time
after the first answer, with the mean of what then stands of the user's own judgements, for good.

What is said later, turned or withdrawn, changes nothing any more: counts that could fall would be no test. Who has
judged nothing by then has no trial: late first judgements would bring the trials of the arm that is slower to judge
from later days, and a mood that falls in both arms would be read as a gain of the other. Whoever writes an answer or a
label of a test leaves a mark in the same transaction; what has been counted is taken away by what was read, so that
nothing is overlooked which was committed meanwhile, in whatever order.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from kto_ray.feedback import faults
from kto_ray.records.completions import Arm, Completion
from kto_ray.records.rollouts import LIVE, RolloutKind, RolloutState
from kto_ray.records.trials import FAULTS, NewUsers, Part, Settled, Standing
from kto_ray.records.users import unit_interval
from kto_ray.store import exposed, judged, reactions
from kto_ray.store.among import among, values
from kto_ray.store.exposed import challenger_of, of_stage
from kto_ray.store.schema import arrivals, completions, labels, rollouts, trials, voters

ANSWERS = 5_000  # looked at in one go
VOTERS = 1_000


@dataclass(frozen=True, slots=True)
class Rules:
    """What makes a trial, of the config that a test goes on under."""

    settle_s: float  # after the first answer
    new_users: NewUsers
    slow_s: float  # a first token after this is a fault
    since: float = 0.0  # who got an answer before (seconds since the epoch) enters with the next one
    long_tokens: int | None = None  # more are a fault
    react_s: float = 0.0  # after the first answer, in which a user may react; 0: nobody is looked at for it


def answered(tx: sa.Connection, come: Iterable[Completion]) -> None:
    """Mark new answers of tests and holdbacks in progress."""
    named = [(name, one) for one in come for name in (one.rollout, one.holdback) if name is not None]
    live = _live(tx, {name for name, _ in named})
    rows = [{"rollout": name, "completion_id": one.id, "faults": faults.of(one)} for name, one in named if name in live]
    if rows:
        tx.execute(arrivals.insert(), rows)


def voted(tx: sa.Connection, fresh: Iterable[Mapping[str, Any]]) -> None:
    """Mark who has judged in tests and holdbacks in progress, by new rows of labels. A row each time: nobody waits for
    another's, nor for who takes away those that are settled."""
    own = [row for row in fresh if row["asker"] and not row["reviewer"]]
    said = {(row[kind], row["asker"], row["seq"]) for kind in ("rollout", "holdback") for row in own if row[kind]}
    live = _live(tx, {name for name, _, _ in said})
    marked = [{"rollout": name, "user": user, "seq": seq} for name, user, seq in sorted(said) if name in live]
    if marked:
        insert = postgresql.insert(voters) if tx.dialect.name == "postgresql" else sqlite.insert(voters)
        tx.execute(insert.on_conflict_do_nothing(), marked)


def _live(tx: sa.Connection, names: set[str]) -> set[str]:
    if not names:
        return set()
    live = rollouts.c.status.in_([status.value for status in LIVE])
    return set(tx.execute(sa.select(rollouts.c.id).where(rollouts.c.id.in_(names), live)).scalars())


def due(tx: sa.Connection, state: RolloutState, now: float) -> bool:
    """Whether `advance` has something to do. Reads only."""
    ready = voters.c.due_at.is_(None) | (voters.c.due_at <= now)
    come = sa.select(arrivals.c.rollout).where(arrivals.c.rollout == state.id)
    waits = sa.select(voters.c.user).where(voters.c.rollout == state.id, ready)
    waiting = (come, waits, reactions.unread(state, now))
    return any(tx.execute(query.limit(1)).first() is not None for query in waiting)


def advance(tx: sa.Connection, state: RolloutState, rules: Rules, now: float) -> None:
    """Take in some of the new answers of a test's stage, and settle some of the trials that are due at `now` (seconds
    since the epoch, as the answers' times)."""
    undated = _marked(tx, state, voters.c.due_at.is_(None))  # read first: what they judged has then arrived
    all_seen = _expose(tx, state, rules)
    _date(tx, state, rules, undated, all_seen)
    _settle(tx, state, rules, now)
    reactions.read(tx, state, now)


def standing(tx: sa.Connection, state: RolloutState, before: Standing | None = None) -> Standing:
    """What the stage has come to; `before` is an earlier look, whose trials are not read again."""
    if before is None or (before.rollout, before.stage) != (state.id, state.stage):
        before = Standing(state.id, state.stage)
    t, stage = trials.c, of_stage(trials, state)
    new = sa.select(t.challenger, t.outcome).where(stage, t.place > len(before.trials)).order_by(t.place)
    settled = tuple(Settled(row.challenger, row.outcome) for row in tx.execute(new))
    champion, challenger = exposed.arms(tx, state)
    waiting = sa.select(sa.func.count(voters.c.user.distinct())).where(
        voters.c.rollout == state.id, voters.c.due_at.is_not(None)
    )
    number = int(tx.execute(waiting).scalar_one())
    return Standing(state.id, state.stage, champion, challenger, before.trials + settled, number)


def history(tx: sa.Connection, rollout: str, stage: int) -> list[Part]:
    """Every user's part in a stage, in the order of their first answers."""
    t, names = trials.c, Part.__slots__
    theirs = (t.rollout == rollout) & (t.stage == stage)
    query = sa.select(*(t[name] for name in names)).where(theirs).order_by(t.first_at, t.user)
    return [_part_of(row) for row in tx.execute(query).mappings()]


def _part_of(row: Any) -> Part:
    did = None if row["reactions"] is None else tuple(row["reactions"])
    return Part(**{**row, "faults": tuple(row["faults"]), "reactions": did})


def forget(tx: sa.Connection, user: str, pseudonym: str) -> None:
    """A user is erased: that somebody was in a test, and what came of it, stays without a name."""
    tx.execute(trials.update().where(trials.c.user == user).values(user=pseudonym))  # first, as who settles them
    tx.execute(voters.delete().where(voters.c.user == user))


def _row(tx: sa.Connection, state: RolloutState) -> Any:
    return tx.execute(sa.select(rollouts).where(rollouts.c.id == state.id)).one()


def _expose(tx: sa.Connection, state: RolloutState, rules: Rules) -> bool:
    """Enter the users of new answers, each by the first; whether all that had arrived have been looked at."""
    c, come = completions.c, arrivals.c
    columns = (c.id, c.seq, c.user, c.principal, c.arm, c.task, c.forced, c.created_at, c.status, c.finish_reason)
    query = sa.select(*columns, c.first_token_s, c.latency_s, c.completion_tokens, come.faults)
    query = query.join(arrivals, come.completion_id == c.id)
    # Locked, so that an erasure of them waits, and finds what is made of them.
    some = query.where(come.rollout == state.id).order_by(c.seq).limit(ANSWERS).with_for_update(of=arrivals)
    answers = tx.execute(some).all()
    row = _row(tx, state)
    ours = (a for a in reversed(answers) if a.seq > row.stage_started_seq and a.created_at >= rules.since)
    first = {answer.user: answer for answer in ours if _as_drawn(state, answer)}
    held = sa.select(trials.c.user).where(of_stage(trials, state), among(tx, trials.c.user, first))
    for name in tx.execute(held).scalars():
        del first[name]
    new = set(first) if rules.new_users is True else {u for u in first if first[u].principal in (rules.new_users or ())}
    known = new | _seen_before(tx, first.keys() - new, row.started_seq)
    entered = [_new_part(state, rules, answer, name in known) for name, answer in first.items()]
    if entered:
        tx.execute(trials.insert(), entered)
        _count(tx, state, entered)
    if answers:
        seen = among(tx, come.completion_id, [answer.id for answer in answers])
        tx.execute(arrivals.delete().where(come.rollout == state.id, seen))
    return len(answers) < ANSWERS


def _as_drawn(state: RolloutState, answer: Any) -> bool:
    """Whether an answer exposes its user to the arm that was drawn for them: not by the weight of the stage before, nor
    by what stood in for the adapter, nor where no person asked for it."""
    if answer.user is None or answer.task is not None or answer.forced:
        return False
    challenger = unit_interval(state.salt, answer.user) < state.weight
    return bool(answer.arm == (challenger_of(state) if challenger else Arm.CHAMPION))


def _seen_before(tx: sa.Connection, users: Collection[str], seq: int) -> set[str]:
    """Of these users, who asked before a moment in the store's order."""
    each, earlier = values(tx, users), completions.c
    asked = sa.select(earlier.id).where(earlier.user == each.c.value, earlier.seq <= seq).exists()
    return set(tx.execute(sa.select(each.c.value).where(asked)).scalars())


def _new_part(state: RolloutState, rules: Rules, answer: Any, known: bool) -> dict[str, Any]:
    """Of a user, by their first answer."""
    reacts = known and state.kind is RolloutKind.TEST and rules.react_s > 0
    return {
        "rollout": state.id,
        "stage": state.stage,
        "user": answer.user,
        "challenger": answer.arm == challenger_of(state),
        "known": known,
        "first_at": answer.created_at,
        "first_seq": answer.seq,
        "faults": _faults(answer, rules),
        "react_by": answer.created_at + rules.react_s if reacts else None,
    }


def _faults(answer: Any, rules: Rules) -> list[str]:
    begun_s = answer.first_token_s if answer.first_token_s is not None else answer.latency_s  # one that came whole
    has = {
        "failed": answer.status == "failed",
        "aborted": answer.status == "aborted",
        "cut_off": answer.finish_reason == "length",
        "slow": begun_s > rules.slow_s,
        "long": rules.long_tokens is not None and answer.completion_tokens > rules.long_tokens,
        **dict.fromkeys(answer.faults, True),
    }
    return [name for name in FAULTS if has.get(name)]


def _count(tx: sa.Connection, state: RolloutState, entered: Sequence[Mapping[str, Any]]) -> None:
    for challenger in (False, True):
        arm = [part for part in entered if part["challenger"] is challenger]
        ours = [part for part in arm if part["known"]]
        wrong = {name: sum(name in part["faults"] for part in ours) for name in FAULTS}
        exposed.add(tx, state, challenger, {"users": len(arm), "known": len(ours), **wrong})


Marks = Sequence[tuple[str, int]]  # users, and of what they said


def _marked(tx: sa.Connection, state: RolloutState, which: sa.ColumnElement[bool]) -> Marks:
    query = sa.select(voters.c.user, voters.c.seq).where(voters.c.rollout == state.id, which)
    rows = tx.execute(query.order_by(voters.c.due_at, voters.c.user, voters.c.seq).limit(VOTERS))
    return [(row.user, row.seq) for row in rows]


def _date(tx: sa.Connection, state: RolloutState, rules: Rules, marks: Marks, all_seen: bool) -> None:
    """When the trials of those who have judged are due. Who cannot have one is not looked at again until they say
    more: whose trial is settled, who does not count, who was not in this stage, who judged too late."""
    if not marks:
        return
    open_ = of_stage(trials, state) & trials.c.known & trials.c.place.is_(None)
    query = sa.select(trials.c.user, trials.c.first_at).where(open_, among(tx, trials.c.user, {u for u, _ in marks}))
    first = {row.user: row.first_at for row in tx.execute(query)}
    late = _late(tx, state, {user: at + rules.settle_s for user, at in first.items()}) if rules.settle_s else set()
    dated = [
        {"of": state.id, "name": user, "said": seq, "due": first[user] + rules.settle_s}
        for user, seq in marks
        if user in first and (user, seq) not in late
    ]
    if dated:
        tx.execute(voters.update().where(_MARK).values(due_at=sa.bindparam("due")), dated)
    _drop(tx, state, [mark for mark in marks if mark in late or (all_seen and mark[0] not in first)])


def _late(tx: sa.Connection, state: RolloutState, due: Mapping[str, float]) -> set[tuple[str, int]]:
    """What users have said since their trials were due."""
    query = sa.select(labels.c.asker, labels.c.seq, labels.c.at)
    said = tx.execute(query.where(judged.named(state), among(tx, labels.c.asker, due)))
    return {(row.asker, row.seq) for row in said if row.at > due[row.asker]}


def _settle(tx: sa.Connection, state: RolloutState, rules: Rules, now: float) -> None:
    marks = _marked(tx, state, voters.c.due_at <= now)
    if not marks:
        return
    theirs = of_stage(trials, state) & among(tx, trials.c.user, {user for user, _ in marks})
    query = sa.select(trials.c.user, trials.c.first_at).where(theirs)
    # Locked, so that an erasure of one waits, and leaves no gap in places
    first = {row.user: row.first_at for row in tx.execute(query.with_for_update())}
    users = [user for user in dict.fromkeys(user for user, _ in marks) if user in first]
    due = {user: first[user] + rules.settle_s if rules.settle_s else None for user in users}
    means, place = judged.means(tx, state, due, now), len_of(tx, state)
    having = (user for user in users if user in means)
    settled = [{"name": user, "at": place + i, "of": means[user]} for i, user in enumerate(having, start=1)]
    mine = of_stage(trials, state) & (trials.c.user == sa.bindparam("name")) & trials.c.place.is_(None)
    if settled:
        set_ = trials.update().where(mine).values(place=sa.bindparam("at"), outcome=sa.bindparam("of"), settled_at=now)
        tx.execute(set_, settled)
    _drop(tx, state, marks)


def len_of(tx: sa.Connection, state: RolloutState) -> int:
    """How many trials of the stage are settled."""
    query = sa.select(sa.func.coalesce(sa.func.max(trials.c.place), 0)).where(of_stage(trials, state))
    return int(tx.execute(query).scalar_one())


_MARK = (
    (voters.c.rollout == sa.bindparam("of"))
    & (voters.c.user == sa.bindparam("name"))
    & (voters.c.seq == sa.bindparam("said"))
)


def _drop(tx: sa.Connection, state: RolloutState, marks: Marks) -> None:
    if marks:
        tx.execute(voters.delete().where(_MARK), [{"of": state.id, "name": user, "said": seq} for user, seq in marks])
