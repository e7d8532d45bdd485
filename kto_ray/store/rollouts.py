"""A/B tests: their state, what they count, and the interval at each look."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from kto_ray.store.schema import completions, feedback, replicas, rollout_points, rollouts
from kto_ray.types import Arm, ArmCount, FeedbackKind, ReplicaReport, RolloutState, RolloutStatus

LIVE = (RolloutStatus.RUNNING.value, RolloutStatus.PAUSED.value)


def insert(tx: sa.Connection, state: RolloutState) -> None:
    tx.execute(rollouts.insert().values(**_columns(state)))


def update(tx: sa.Connection, state: RolloutState) -> None:
    tx.execute(rollouts.update().where(rollouts.c.id == state.id).values(**_columns(state)))


def get(tx: sa.Connection, rollout: str) -> RolloutState | None:
    row = tx.execute(sa.select(rollouts).where(rollouts.c.id == rollout)).mappings().first()
    return _state(row) if row else None


def live(tx: sa.Connection) -> RolloutState | None:
    """The rollout in progress, running or paused; there is at most one."""
    query = sa.select(rollouts).where(rollouts.c.status.in_(LIVE)).order_by(rollouts.c.started_at.desc()).limit(1)
    row = tx.execute(query).mappings().first()
    return _state(row) if row else None


def every(tx: sa.Connection) -> list[RolloutState]:
    return [_state(row) for row in tx.execute(sa.select(rollouts).order_by(rollouts.c.started_at)).mappings()]


def counts(tx: sa.Connection, rollout: str, since: float, until: float | None = None) -> tuple[ArmCount, ArmCount]:
    """(champion, challenger): users who judged in [since, until), and how many of their FIRST judgements were up.

    A user's first thumb or edit on a completion asked for in that time is the unit: later ones are correlated with it
    and would make the confidence sequence too narrow. An edit counts as a down: the answer was not good enough.
    """
    within = completions.c.created_at >= since
    if until is not None:
        within = within & (completions.c.created_at < until)
    order = sa.func.row_number().over(partition_by=completions.c.user, order_by=(feedback.c.created_at, feedback.c.id))
    up = sa.case(((feedback.c.kind == FeedbackKind.THUMB.value) & feedback.c.value.is_(True), 1), else_=0)
    judged = (
        sa.select(completions.c.arm, up.label("up"), order.label("nth"))
        .join(feedback, feedback.c.completion_id == completions.c.id)
        .where(
            completions.c.rollout == rollout,
            completions.c.user.is_not(None),
            completions.c.task.is_(None),
            feedback.c.kind != FeedbackKind.COMMENT.value,
            feedback.c.withdrawn_at.is_(None),
            within,
        )
        .subquery()
    )
    query = sa.select(judged.c.arm, sa.func.count(), sa.func.sum(judged.c.up)).where(judged.c.nth == 1)
    by_arm = {row[0]: ArmCount(int(row[1]), int(row[2])) for row in tx.execute(query.group_by(judged.c.arm))}
    empty = ArmCount(0, 0)
    return by_arm.get(Arm.CHAMPION.value, empty), by_arm.get(Arm.CHALLENGER.value, empty)


def add_point(
    tx: sa.Connection, state: RolloutState, at: float, arms: tuple[ArmCount, ArmCount], interval: tuple[float, float]
) -> None:
    champion, challenger = arms
    tx.execute(
        rollout_points.insert().values(
            rollout=state.id,
            at=at,
            stage=state.stage,
            n_champion=champion.users,
            up_champion=champion.up,
            n_challenger=challenger.users,
            up_challenger=challenger.up,
            low=interval[0],
            high=interval[1],
        )
    )


def points(tx: sa.Connection, rollout: str) -> list[dict[str, Any]]:
    query = sa.select(rollout_points).where(rollout_points.c.rollout == rollout).order_by(rollout_points.c.at)
    return [dict(row) for row in tx.execute(query).mappings()]


def report_replica(tx: sa.Connection, report: ReplicaReport) -> None:
    tx.execute(replicas.delete().where(replicas.c.replica == report.replica))
    tx.execute(replicas.insert().values(**{**asdict(report), "held": list(report.held), "errors": dict(report.errors)}))


def drop_replica(tx: sa.Connection, replica: str) -> None:
    tx.execute(replicas.delete().where(replicas.c.replica == replica))


def live_replicas(tx: sa.Connection, since: float) -> list[ReplicaReport]:
    """Replicas heard of after `since`."""
    query = sa.select(replicas).where(replicas.c.heartbeat_at >= since).order_by(replicas.c.replica)
    return [ReplicaReport(**{**row, "held": tuple(row["held"])}) for row in tx.execute(query).mappings()]


def _columns(state: RolloutState) -> dict[str, Any]:
    return {**asdict(state), "status": state.status.value}


def _state(row: Any) -> RolloutState:
    return RolloutState(**{**row, "status": RolloutStatus(row["status"])})
