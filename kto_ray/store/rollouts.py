"""A/B tests: their state, the interval at each look, and their votes, one a user: which one is decided here."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from kto_ray.records.completions import Arm
from kto_ray.records.labels import Verdict
from kto_ray.records.rollouts import LIVE, ArmCount, Look, RolloutState, RolloutStatus
from kto_ray.store import sequence
from kto_ray.store.schema import labels, rollout_points, rollouts


def put(tx: sa.Connection, state: RolloutState) -> None:
    """Record a test, or where it stands now."""
    columns = _columns(state)
    known = get(tx, state.id)
    if known is None or known.stage_started_at != state.stage_started_at:
        columns["stage_started_seq"] = sequence.last(tx)
    if tx.execute(rollouts.update().where(rollouts.c.id == state.id).values(**columns)).rowcount == 0:
        tx.execute(rollouts.insert().values(**columns))


def get(tx: sa.Connection, rollout: str) -> RolloutState | None:
    row = tx.execute(sa.select(rollouts).where(rollouts.c.id == rollout)).mappings().first()
    return _state(row) if row else None


def live(tx: sa.Connection) -> RolloutState | None:
    """The rollout in progress, running or paused; there is at most one."""
    query = (
        sa.select(rollouts)
        .where(rollouts.c.status.in_([status.value for status in LIVE]))
        .order_by(rollouts.c.started_at.desc())
        .limit(1)
    )
    row = tx.execute(query).mappings().first()
    return _state(row) if row else None


def latest(tx: sa.Connection, number: int) -> list[RolloutState]:
    """The newest tests, oldest first."""
    query = sa.select(rollouts).order_by(rollouts.c.started_at.desc()).limit(number)
    return [_state(row) for row in tx.execute(query).mappings()][::-1]


def of_adapter(tx: sa.Connection, adapter: str) -> list[RolloutState]:
    """The tests in which an adapter was an arm, oldest first."""
    theirs = (rollouts.c.champion == adapter) | (rollouts.c.challenger == adapter)
    return [
        _state(row) for row in tx.execute(sa.select(rollouts).where(theirs).order_by(rollouts.c.started_at)).mappings()
    ]


def votes(tx: sa.Connection, rollout: str) -> tuple[ArmCount, ArmCount]:
    """(champion, challenger): users who asked since its stage began and judged the answer, and how many of their FIRST
    labels were up.

    A user's first label on a completion asked for in that time is the unit: later ones are correlated with it and would
    make the confidence sequence too narrow. An edit counts as a down: the answer was not good enough. Reviewers have no
    vote.
    """
    # From one user to the next along the index, and of each the first label: users who judge on and on cost nothing.
    theirs = (labels.c.rollout == rollout) & ~labels.c.reviewer
    since = sa.select(rollouts.c.stage_started_seq).where(rollouts.c.id == rollout).scalar_subquery()
    users = sa.select(sa.func.min(labels.c.asker).label("asker")).where(theirs).cte("users", recursive=True)
    another = sa.select(sa.func.min(labels.c.asker)).where(theirs, labels.c.asker > users.c.asker)
    users = users.union_all(sa.select(another.scalar_subquery()).where(users.c.asker.is_not(None)))
    vote = labels.c.arm + "/" + labels.c.verdict
    own = sa.select(vote).where(theirs, labels.c.asker == users.c.asker, labels.c.asked_seq > since)
    first = own.order_by(labels.c.seq).limit(1).scalar_subquery().label("vote")
    votes = sa.select(first).where(users.c.asker.is_not(None)).subquery()
    counted = sa.select(votes.c.vote, sa.func.count()).where(votes.c.vote.is_not(None)).group_by(votes.c.vote)
    number = Counter({str(row[0]): int(row[1]) for row in tx.execute(counted)})

    def arm(name: Arm) -> ArmCount:
        up, *others = (number[f"{name.value}/{verdict.value}"] for verdict in Verdict)
        return ArmCount(up + sum(others), up)

    assert next(iter(Verdict)) is Verdict.UP
    return arm(Arm.CHAMPION), arm(Arm.CHALLENGER)


def add_look(tx: sa.Connection, look: Look) -> None:
    tx.execute(rollout_points.insert().values(**asdict(look)))


def looks(tx: sa.Connection, rollout: str) -> list[Look]:
    """Oldest first."""
    query = sa.select(rollout_points).where(rollout_points.c.rollout == rollout).order_by(rollout_points.c.at)
    return [Look(**row) for row in tx.execute(query).mappings()]


def last_look(tx: sa.Connection, rollout: str) -> Look | None:
    theirs = sa.select(rollout_points).where(rollout_points.c.rollout == rollout)
    row = tx.execute(theirs.order_by(rollout_points.c.at.desc()).limit(1)).mappings().first()
    return Look(**row) if row else None


def _columns(state: RolloutState) -> dict[str, Any]:
    return {**asdict(state), "status": state.status.value}


def _state(row: Any) -> RolloutState:
    fields = {name: value for name, value in row.items() if name != "stage_started_seq"}
    return RolloutState(**{**fields, "status": RolloutStatus(row["status"])})
