"""Rounds of the loop: their rows, as the states that they stand for."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from kto_ray.records.rounds import Ended, Judging, Loading, OnTrial, Outcome, Round, Sealing, Stage, State, Training
from kto_ray.store import tallies
from kto_ray.store.schema import rounds


def insert(tx: sa.Connection, now: float) -> Round:
    """Open a new round at its first stage."""
    came = tallies.total(tx).came
    new = Round(id=count(tx) + 1, state=Sealing(), started_at=now, stage_started_at=now, came_before=came)
    tx.execute(rounds.insert().values(**_columns(new)))
    return new


def update(tx: sa.Connection, changed: Round) -> None:
    tx.execute(rounds.update().where(rounds.c.id == changed.id).values(**_columns(changed)))


def current(tx: sa.Connection) -> Round | None:
    """The round in progress; there is at most one."""
    found = newest(tx)
    return found if found is not None and found.in_progress else None


def newest(tx: sa.Connection) -> Round | None:
    return next(iter(latest(tx, 1)), None)


def latest(tx: sa.Connection, number: int) -> list[Round]:
    """The newest rounds, oldest first."""
    query = sa.select(rounds).order_by(rounds.c.id.desc()).limit(number)
    return [_round(row) for row in tx.execute(query).mappings()][::-1]


def get(tx: sa.Connection, number: int) -> Round | None:
    row = tx.execute(sa.select(rounds).where(rounds.c.id == number)).mappings().first()
    return _round(row) if row else None


def count(tx: sa.Connection) -> int:
    """How many rounds there have been: they are numbered from 1, and none is ever deleted."""
    return int(tx.execute(sa.select(sa.func.coalesce(sa.func.max(rounds.c.id), 0))).scalar_one())


def of_adapter(tx: sa.Connection, adapter: str) -> list[int]:
    """The numbers of the rounds that made an adapter."""
    return list(tx.execute(sa.select(rounds.c.id).where(rounds.c.adapter == adapter).order_by(rounds.c.id)).scalars())


def new_labels(tx: sa.Connection) -> int:
    """Labels that no round has seen: those that came since the newest round began, and stand."""
    before = tx.execute(sa.select(rounds.c.came_before).order_by(rounds.c.id.desc()).limit(1)).scalar()
    return max(tallies.total(tx).came - (before or 0), 0)


def _columns(value: Round) -> dict[str, Any]:
    state = value.state
    held = {name: getattr(state, name, None) for name in ("snapshot", "adapter", "rollout")}
    ended = state if isinstance(state, Ended) else None
    return {
        "id": value.id,
        "stage": state.stage.value,
        "started_at": value.started_at,
        "stage_started_at": value.stage_started_at,
        "ended_at": ended.at if ended else None,
        "outcome": ended.outcome.value if ended else None,
        "reason": ended.reason if ended else value.failure,
        "came_before": value.came_before,
        "attempts": value.attempts,
        "stage_s": dict(value.stage_s),
        **held,
    }


def _round(row: Any) -> Round:
    state = _state(row)
    return Round(
        id=row["id"],
        state=state,
        started_at=row["started_at"],
        stage_started_at=row["stage_started_at"],
        came_before=row["came_before"],
        attempts=row["attempts"],
        failure=None if isinstance(state, Ended) else row["reason"],
        stage_s=row["stage_s"],
    )


def _state(row: Any) -> State:
    match Stage(row["stage"]):
        case Stage.SNAPSHOT:
            return Sealing()
        case Stage.TRAIN:
            return Training(row["snapshot"])
        case Stage.LOAD:
            return Loading(row["snapshot"], row["adapter"])
        case Stage.GATE:
            return Judging(row["snapshot"], row["adapter"])
        case Stage.ROLLOUT:
            return OnTrial(row["snapshot"], row["adapter"], row["rollout"])
        case Stage.DONE:
            held = (row["snapshot"], row["adapter"], row["rollout"])
            return Ended(Outcome(row["outcome"]), row["reason"], row["ended_at"], *held)
