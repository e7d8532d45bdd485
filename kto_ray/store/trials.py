"""Who got an answer in a stage of an A/B test, or a week of a holdback, and each user's one trial: settled a fixed time
after the first answer, with the mean of what then stood of the user's own judgements, for good.

What is said later, turned or withdrawn, changes nothing any more: counts that could fall would be no test. A bounded
number of rows is looked at each time, and nothing is looked at twice for long.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from kto_ray.records.completions import Arm
from kto_ray.records.labels import Verdict
from kto_ray.records.rollouts import RolloutKind, RolloutState
from kto_ray.records.trials import FAULTS, Exposed, Part, Settled, Standing
from kto_ray.records.users import unit_interval
from kto_ray.store.among import among, values
from kto_ray.store.schema import completions, exposures, labels, rollouts, trials, voters

ANSWERS = 5_000  # looked at in one go
VOTERS = 1_000
# Of the store's order, read again each time: on PostgreSQL an answer may be committed after one with a higher number.
OVERLAP = 500


@dataclass(frozen=True, slots=True)
class Rules:
    """What makes a trial, of the config that a test goes on under."""

    settle_s: float  # after the first answer
    new_users: bool  # whether who came since the test began counts
    slow_s: float  # a first token after this is a fault
    since: float = 0.0  # who got an answer before (seconds since the epoch) enters with the next one


def due(tx: sa.Connection, state: RolloutState, now: float) -> bool:
    """Whether `advance` has something to do. Reads only."""
    row = _row(tx, state)
    answers = sa.select(completions.c.id).where(_named(completions, state), completions.c.seq > row.looked_seq)
    ready = voters.c.due_at.is_(None) | (voters.c.due_at <= now)
    waits = sa.select(voters.c.user).where(voters.c.rollout == state.id, ready)
    return any(tx.execute(query.limit(1)).first() is not None for query in (answers, waits))


def advance(tx: sa.Connection, state: RolloutState, rules: Rules, now: float) -> None:
    """Take in some of the new answers of a test's stage, and settle some of the trials that are due at `now` (seconds
    since the epoch, as the answers' times)."""
    all_seen = _expose(tx, state, rules)
    _date(tx, state, rules, all_seen)
    _settle(tx, state, now)


def standing(tx: sa.Connection, state: RolloutState, before: Standing | None = None) -> Standing:
    """What the stage has come to; `before` is an earlier look, whose trials are not read again."""
    if before is None or (before.rollout, before.stage) != (state.id, state.stage):
        before = Standing(state.id, state.stage)
    t, stage = trials.c, _of(trials, state)
    new = sa.select(t.challenger, t.outcome).where(stage, t.place > len(before.trials)).order_by(t.place)
    settled = tuple(Settled(row.challenger, row.outcome) for row in tx.execute(new))
    arms = {row["challenger"]: row for row in tx.execute(sa.select(exposures).where(_of(exposures, state))).mappings()}
    champion, challenger = (
        Exposed(*(arms[arm][name] for name in Exposed.__slots__)) if arm in arms else Exposed() for arm in (False, True)
    )
    waiting = sa.select(sa.func.count()).where(voters.c.rollout == state.id, voters.c.due_at.is_not(None))
    number = int(tx.execute(waiting).scalar_one())
    return Standing(state.id, state.stage, champion, challenger, before.trials + settled, number)


def history(tx: sa.Connection, rollout: str, stage: int) -> list[Part]:
    """Every user's part in a stage, in the order of their first answers."""
    t, names = trials.c, Part.__slots__
    theirs = (t.rollout == rollout) & (t.stage == stage)
    query = sa.select(*(t[name] for name in names)).where(theirs).order_by(t.first_at, t.user)
    return [Part(**{**row, "faults": tuple(row["faults"])}) for row in tx.execute(query).mappings()]


def forget(tx: sa.Connection, user: str, pseudonym: str) -> None:
    """A user is erased: that somebody was in a test, and what came of it, stays without a name."""
    tx.execute(voters.delete().where(voters.c.user == user))
    tx.execute(trials.update().where(trials.c.user == user).values(user=pseudonym))


def _row(tx: sa.Connection, state: RolloutState) -> Any:
    return tx.execute(sa.select(rollouts).where(rollouts.c.id == state.id)).one()


def _of(table: sa.Table, state: RolloutState) -> sa.ColumnElement[bool]:
    return (table.c.rollout == state.id) & (table.c.stage == state.stage)


def _named(table: sa.Table, state: RolloutState) -> sa.ColumnElement[bool]:
    """Answers, or labels of answers, that are of a rollout. A user may be in a test and in a holdback's other arm."""
    return (table.c.rollout if state.kind is RolloutKind.TEST else table.c.holdback) == state.id


def _challenger(state: RolloutState) -> Arm:
    return Arm.CHALLENGER if state.kind is RolloutKind.TEST else Arm.HOLDBACK


def _expose(tx: sa.Connection, state: RolloutState, rules: Rules) -> bool:
    """Enter the users of new answers, each by the first; whether all answers have been looked at."""
    row, c = _row(tx, state), completions.c
    columns = (c.seq, c.user, c.arm, c.task, c.forced, c.created_at, c.status, c.finish_reason, c.first_token_s)
    since = max(row.stage_started_seq, row.looked_seq - OVERLAP)
    new = _named(completions, state) & (c.seq > since)
    answers = tx.execute(sa.select(*columns).where(new).order_by(c.seq).limit(ANSWERS)).all()
    counted = (answer for answer in reversed(answers) if answer.created_at >= rules.since)
    first = {answer.user: answer for answer in counted if _as_drawn(state, answer)}
    held = sa.select(trials.c.user).where(_of(trials, state), among(tx, trials.c.user, first))
    for name in tx.execute(held).scalars():
        del first[name]
    known = set(first) if rules.new_users else _seen_before(tx, list(first), row.started_seq)
    entered = [
        {
            "rollout": state.id,
            "stage": state.stage,
            "user": name,
            "challenger": answer.arm == _challenger(state),
            "known": name in known,
            "first_at": answer.created_at,
            "faults": _faults(answer, rules),
        }
        for name, answer in first.items()
    ]
    if entered:
        tx.execute(trials.insert(), entered)
        _count(tx, state, entered)
    all_seen = len(answers) < ANSWERS
    if answers and answers[-1].seq > row.looked_seq:
        tx.execute(rollouts.update().where(rollouts.c.id == state.id).values(looked_seq=answers[-1].seq))
    return all_seen


def _as_drawn(state: RolloutState, answer: Any) -> bool:
    """Whether an answer exposes its user to the arm that was drawn for them: not by the weight of the stage before, nor
    by what stood in for the adapter, nor where no person asked for it."""
    if answer.user is None or answer.task is not None or answer.forced:
        return False
    challenger = unit_interval(state.salt, answer.user) < state.weight
    return bool(answer.arm == (_challenger(state) if challenger else Arm.CHAMPION))


def _seen_before(tx: sa.Connection, users: Sequence[str], seq: int) -> set[str]:
    """Of these users, who asked before a moment in the store's order."""
    each, earlier = values(tx, users), completions.c
    asked = sa.select(earlier.id).where(earlier.user == each.c.value, earlier.seq <= seq).exists()
    return set(tx.execute(sa.select(each.c.value).where(asked)).scalars())


def _faults(answer: Any, rules: Rules) -> list[str]:
    late = answer.first_token_s is not None and answer.first_token_s > rules.slow_s
    has = {
        "failed": answer.status == "failed",
        "aborted": answer.status == "aborted",
        "cut_off": answer.finish_reason == "length",
        "slow": late,
    }
    return [name for name in FAULTS if has[name]]


def _count(tx: sa.Connection, state: RolloutState, entered: Sequence[Mapping[str, Any]]) -> None:
    for challenger in (False, True):
        arm = [part for part in entered if part["challenger"] is challenger]
        ours = [part for part in arm if part["known"]]
        faults = {name: sum(name in part["faults"] for part in ours) for name in FAULTS}
        more = {"users": len(arm), "known": len(ours), **faults}
        where = _of(exposures, state) & (exposures.c.challenger == challenger)
        added = {name: exposures.c[name] + by for name, by in more.items()}
        if tx.execute(exposures.update().where(where).values(**added)).rowcount == 0:
            own = {"rollout": state.id, "stage": state.stage, "challenger": challenger}
            tx.execute(exposures.insert().values(**own, **more))


def _date(tx: sa.Connection, state: RolloutState, rules: Rules, all_seen: bool) -> None:
    """When the trials of those who have judged are due. Who cannot have one is not looked at again until they say
    more: whose trial is settled, who does not count, who was not in this stage."""
    new = sa.select(voters.c.user).where(voters.c.rollout == state.id, voters.c.due_at.is_(None)).limit(VOTERS)
    users = list(tx.execute(new).scalars())
    if not users:
        return
    open_ = _of(trials, state) & trials.c.known & trials.c.place.is_(None)
    query = sa.select(trials.c.user, trials.c.first_at).where(open_, among(tx, trials.c.user, users))
    first = {row.user: row.first_at for row in tx.execute(query)}
    dated = [{"of": state.id, "name": user, "due": at + rules.settle_s} for user, at in first.items()]
    mine = (voters.c.rollout == sa.bindparam("of")) & (voters.c.user == sa.bindparam("name"))
    if dated:
        tx.execute(voters.update().where(mine).values(due_at=sa.bindparam("due")), dated)
    if all_seen:
        _drop(tx, state, [user for user in users if user not in first])


def _settle(tx: sa.Connection, state: RolloutState, now: float) -> None:
    v = voters.c
    ready = sa.select(v.user).where(v.rollout == state.id, v.due_at <= now).order_by(v.due_at, v.user).limit(VOTERS)
    users = list(tx.execute(ready).scalars())
    if not users:
        return
    said = _judgements(tx, state, users)
    place = len_of(tx, state)
    settled = [
        {"name": user, "at": place + i, "of": said[user]}
        for i, user in enumerate((user for user in users if user in said), start=1)
    ]
    mine = _of(trials, state) & (trials.c.user == sa.bindparam("name")) & trials.c.place.is_(None)
    if settled:
        values = {"place": sa.bindparam("at"), "outcome": sa.bindparam("of"), "settled_at": now}
        tx.execute(trials.update().where(mine).values(**values), settled)
    _drop(tx, state, users)


def len_of(tx: sa.Connection, state: RolloutState) -> int:
    """How many trials of the stage are settled."""
    query = sa.select(sa.func.coalesce(sa.func.max(trials.c.place), 0)).where(_of(trials, state))
    return int(tx.execute(query).scalar_one())


def _judgements(tx: sa.Connection, state: RolloutState, users: Sequence[str]) -> dict[str, float]:
    """The mean of what stands of each user's own judgements of answers of this stage; who has none is not there. An
    edit counts as a down: the answer was not good enough."""
    started = sa.select(rollouts.c.stage_started_seq).where(rollouts.c.id == state.id).scalar_subquery()
    l, t = labels.c, trials.c  # noqa: E741
    arm = sa.case((t.challenger, _challenger(state).value), else_=Arm.CHAMPION.value)
    open_ = _of(trials, state) & (t.user == l.asker) & t.place.is_(None) & t.known & (l.arm == arm)
    theirs = _named(labels, state) & among(tx, l.asker, users) & ~l.reviewer & (l.asked_seq > started)
    up = sa.case((l.verdict == Verdict.UP.value, 1.0), else_=0.0)
    query = sa.select(l.asker, sa.func.avg(up).label("mean")).select_from(labels.join(trials, open_)).where(theirs)
    return {row.asker: float(row.mean) for row in tx.execute(query.group_by(l.asker))}


def _drop(tx: sa.Connection, state: RolloutState, users: Sequence[str]) -> None:
    if users:
        tx.execute(voters.delete().where(voters.c.rollout == state.id, among(tx, voters.c.user, users)))
