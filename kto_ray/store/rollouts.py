"""A/B tests: their state, and what each look at them saw."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from kto_ray.records.rollouts import LIVE, BudgetReset, Look, RolloutKind, RolloutState, RolloutStatus
from kto_ray.store import sequence
from kto_ray.store.schema import arrivals, budget_resets, rollout_points, rollouts, voters

_TESTS = rollouts.c.kind == RolloutKind.TEST.value
# The order of looks. Within a stage counts never fall; clocks do, and differ between machines.
_SEEN = (
    rollout_points.c.stage,
    rollout_points.c.n_champion + rollout_points.c.n_challenger,
    rollout_points.c.exposed_champion + rollout_points.c.exposed_challenger,
    rollout_points.c.at,
)


def put(tx: sa.Connection, state: RolloutState) -> None:
    """Record a test, or where it stands now."""
    columns = _columns(state)
    known = get(tx, state.id)
    if known is None or known.stage_started_at != state.stage_started_at:  # a stage's trials are its own
        columns["stage_started_seq"] = sequence.last(tx)
        tx.execute(voters.update().where(voters.c.rollout == state.id).values(due_at=None))
        # Who is known when a test begins, which may be long after it asked whether it should: nobody was exposed to it
        # before; when a week begins, of a holdback, which goes on for long
        if known is None or known.weight == 0 or state.kind is not RolloutKind.TEST:
            columns["started_seq"] = columns["stage_started_seq"]
    if not state.live:
        for table in (arrivals, voters):
            tx.execute(table.delete().where(table.c.rollout == state.id))
    if tx.execute(rollouts.update().where(rollouts.c.id == state.id).values(**columns)).rowcount == 0:
        tx.execute(rollouts.insert().values(**columns))


def get(tx: sa.Connection, rollout: str) -> RolloutState | None:
    row = tx.execute(sa.select(rollouts).where(rollouts.c.id == rollout)).mappings().first()
    return _state(row) if row else None


def live(tx: sa.Connection, kind: RolloutKind = RolloutKind.TEST) -> RolloutState | None:
    """The rollout in progress, running or paused; there is at most one of a kind."""
    query = (
        sa.select(rollouts)
        .where(rollouts.c.status.in_([status.value for status in LIVE]), rollouts.c.kind == kind.value)
        .order_by(rollouts.c.started_at.desc())
        .limit(1)
    )
    row = tx.execute(query).mappings().first()
    return _state(row) if row else None


def latest(tx: sa.Connection, number: int) -> list[RolloutState]:
    """The newest tests, oldest first."""
    query = sa.select(rollouts).where(_TESTS).order_by(rollouts.c.started_at.desc()).limit(number)
    return [_state(row) for row in tx.execute(query).mappings()][::-1]


def last_asked(tx: sa.Connection) -> RolloutState | None:
    """The newest test that asked a person before it began, for it could show too little."""
    query = sa.select(rollouts).where(_TESTS, rollouts.c.watch.is_not(None)).order_by(rollouts.c.started_at.desc())
    row = tx.execute(query.limit(1)).mappings().first()
    return _state(row) if row else None


def of_adapter(tx: sa.Connection, adapter: str) -> list[RolloutState]:
    """The tests in which an adapter was an arm, oldest first."""
    theirs = _TESTS & ((rollouts.c.champion == adapter) | (rollouts.c.challenger == adapter))
    return [
        _state(row) for row in tx.execute(sa.select(rollouts).where(theirs).order_by(rollouts.c.started_at)).mappings()
    ]


def add_look(tx: sa.Connection, look: Look) -> None:
    """A clock that went back may have had this moment before."""
    seen = rollout_points.c
    tx.execute(rollout_points.delete().where((seen.rollout == look.rollout) & (seen.at == look.at)))
    tx.execute(rollout_points.insert().values(**asdict(look)))


def looks(tx: sa.Connection, rollout: str) -> list[Look]:
    """Oldest first."""
    query = sa.select(rollout_points).where(rollout_points.c.rollout == rollout).order_by(*_SEEN)
    return [Look(**row) for row in tx.execute(query).mappings()]


def last_look(tx: sa.Connection, rollout: str) -> Look | None:
    theirs = sa.select(rollout_points).where(rollout_points.c.rollout == rollout)
    row = tx.execute(theirs.order_by(*(what.desc() for what in _SEEN)).limit(1)).mappings().first()
    return Look(**row) if row else None


def _columns(state: RolloutState) -> dict[str, Any]:
    return {**asdict(state), "status": state.status.value, "kind": state.kind.value, "asked": list(state.asked)}


def _state(row: Any) -> RolloutState:
    fields = {name: row[name] for name in RolloutState.__slots__}
    typed = {"status": RolloutStatus(row["status"]), "kind": RolloutKind(row["kind"]), "asked": tuple(row["asked"])}
    return RolloutState(**{**fields, **typed})


def finished(tx: sa.Connection, of: str | None = None) -> list[RolloutState]:
    """Tests that ended, oldest first: what the budget of the loop's life was spent on, since its last reset; or in the
    life that the test `of` belongs to."""
    life = sa.select(rollouts.c.budget_reset).where(rollouts.c.id == of).scalar_subquery()
    theirs = rollouts.c.budget_reset.is_not_distinct_from(life if of is not None else sa.null())
    ended = rollouts.c.ended_at.is_not(None) & (rollouts.c.level > 0)
    query = sa.select(rollouts).where(theirs, ended).order_by(rollouts.c.started_at, rollouts.c.id)
    return [_state(row) for row in tx.execute(query).mappings()]


def reset_budget(tx: sa.Connection, reset: BudgetReset) -> None:
    """End the present life of the budget. What has begun is marked as of it, and not told by its time: clocks differ
    between machines, and a test that none counts would spend nothing."""
    key = tx.execute(budget_resets.insert().values(**asdict(reset))).inserted_primary_key
    assert key is not None
    tx.execute(rollouts.update().where(rollouts.c.budget_reset.is_(None)).values(budget_reset=int(key[0])))


def last_reset(tx: sa.Connection) -> BudgetReset | None:
    """None where the budget's life is the loop's own."""
    row = tx.execute(sa.select(budget_resets).order_by(budget_resets.c.id.desc()).limit(1)).first()
    return BudgetReset(row.at, row.who, row.why) if row else None
