"""A/B tests: their state, the interval at each look, and their votes, one a user: which one is decided here."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from kto_ray.records.completions import Arm
from kto_ray.records.labels import Verdict
from kto_ray.records.rollouts import ArmCount, Look, RolloutState, RolloutStatus
from kto_ray.store.schema import labels, rollout_points, rollouts

LIVE = (RolloutStatus.RUNNING.value, RolloutStatus.PAUSED.value)


def put(tx: sa.Connection, state: RolloutState) -> None:
    """Record a test, or where it stands now."""
    columns = _columns(state)
    if tx.execute(rollouts.update().where(rollouts.c.id == state.id).values(**columns)).rowcount == 0:
        tx.execute(rollouts.insert().values(**columns))


def get(tx: sa.Connection, rollout: str) -> RolloutState | None:
    row = tx.execute(sa.select(rollouts).where(rollouts.c.id == rollout)).mappings().first()
    return _state(row) if row else None


def live(tx: sa.Connection) -> RolloutState | None:
    """The rollout in progress, running or paused; there is at most one."""
    query = sa.select(rollouts).where(rollouts.c.status.in_(LIVE)).order_by(rollouts.c.started_at.desc()).limit(1)
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


def votes(tx: sa.Connection, rollout: str, since: float) -> tuple[ArmCount, ArmCount]:
    """(champion, challenger): users who asked since then and were judged, and how many of their FIRST labels were up.

    A user's first label on a completion asked for in that time is the unit: later ones are correlated with it and would
    make the confidence sequence too narrow. An edit counts as a down: the answer was not good enough.
    """
    c = labels.c
    order = sa.func.row_number().over(partition_by=c.asker, order_by=(c.at, c.completion_id, c.user))
    up = sa.case((c.verdict == Verdict.UP.value, 1), else_=0)
    theirs = (c.rollout == rollout) & c.asker.is_not(None) & (c.asked_at >= since)
    judged = sa.select(c.arm, up.label("up"), order.label("nth")).where(theirs).subquery()
    query = sa.select(judged.c.arm, sa.func.count(), sa.func.sum(judged.c.up)).where(judged.c.nth == 1)
    by_arm = {row[0]: ArmCount(int(row[1]), int(row[2])) for row in tx.execute(query.group_by(judged.c.arm))}
    empty = ArmCount(0, 0)
    return by_arm.get(Arm.CHAMPION.value, empty), by_arm.get(Arm.CHALLENGER.value, empty)


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
    return RolloutState(**{**row, "status": RolloutStatus(row["status"])})
