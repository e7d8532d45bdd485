"""How many users a stage of an A/B test has exposed, by arm, and what is known of them: counts that only grow."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa

from kto_ray.records.completions import Arm
from kto_ray.records.rollouts import RolloutKind, RolloutState
from kto_ray.records.trials import Exposed
from kto_ray.store.schema import exposures


def of_stage(table: sa.Table, state: RolloutState) -> sa.ColumnElement[bool]:
    """The rows of a rollout's present stage."""
    return (table.c.rollout == state.id) & (table.c.stage == state.stage)


def challenger_of(state: RolloutState) -> Arm:
    """What stands in the challenger's place."""
    return Arm.CHALLENGER if state.kind is RolloutKind.TEST else Arm.HOLDBACK


def arms(tx: sa.Connection, state: RolloutState) -> tuple[Exposed, Exposed]:
    """(champion, challenger)."""
    rows = tx.execute(sa.select(exposures).where(of_stage(exposures, state))).mappings()
    found = {row["challenger"]: Exposed(*(row[name] for name in Exposed.__slots__)) for row in rows}
    return found.get(False, Exposed()), found.get(True, Exposed())


def add(tx: sa.Connection, state: RolloutState, challenger: bool, more: Mapping[str, int]) -> None:
    """Raise counts of an arm."""
    where = of_stage(exposures, state) & (exposures.c.challenger == challenger)
    added = {name: exposures.c[name] + by for name, by in more.items()}
    if tx.execute(exposures.update().where(where).values(**added)).rowcount == 0:
        own = {"rollout": state.id, "stage": state.stage, "challenger": challenger}
        tx.execute(exposures.insert().values(**own, **more))
