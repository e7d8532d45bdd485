"""Rounds of the loop: their rows, as the states that they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from kto_ray.records.evaluation import GateDecision
from kto_ray.records.rounds import (
    Awaiting,
    Candidate,
    Ended,
    Judging,
    Loading,
    OnTrial,
    Outcome,
    Reloading,
    Round,
    Sealing,
    Stage,
    State,
    Training,
    Tried,
)
from kto_ray.store import tallies
from kto_ray.store.schema import rounds, trainings

PLAIN = (Candidate(),)


def insert(tx: sa.Connection, now: float, candidates: tuple[Candidate, ...] = PLAIN) -> Round:
    """Open a new round at its first stage."""
    came = tallies.total(tx).came
    new = Round(count(tx) + 1, Sealing(), now, now, came_before=came, candidates=candidates)
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
    """The numbers of the rounds that made an adapter, also one that another candidate of the round was better than."""
    ended_with = sa.select(rounds.c.id).where(rounds.c.adapter == adapter)
    trained = sa.select(trainings.c.round).where(trainings.c.adapter == adapter, trainings.c.round.is_not(None))
    return sorted(tx.execute(ended_with.union(trained)).scalars())


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
        "candidates": [asdict(one) for one in value.candidates],
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
        candidates=_candidates(row["candidates"]),
    )


def _candidates(told: Sequence[dict[str, Any]]) -> tuple[Candidate, ...]:
    """Of a round from before there could be several: the one."""
    return tuple(Candidate(one["name"], one["kto"], _tried(one["tried"])) for one in told) or PLAIN


def _tried(told: dict[str, Any] | None) -> Tried | None:
    if told is None:
        return None
    decision = told["decision"]
    return Tried(**{**told, "decision": None if decision is None else GateDecision(decision)})


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
        case Stage.RELOAD:
            return Reloading(row["snapshot"], row["adapter"])
        case Stage.APPROVAL:
            return Awaiting(row["snapshot"], row["adapter"])
        case Stage.ROLLOUT:
            return OnTrial(row["snapshot"], row["adapter"], row["rollout"])
        case Stage.DONE:
            held = (row["snapshot"], row["adapter"], row["rollout"])
            return Ended(Outcome(row["outcome"]), row["reason"], row["ended_at"], *held)
