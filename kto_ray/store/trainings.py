"""Where training runs are recorded, of rounds and by hand: while they run and when they have ended."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from kto_ray.records.trainings import TrainingRun
from kto_ray.store.schema import trainings

WITHOUT_HISTORY = [column for column in trainings.c if column.name != "history"]


def put(tx: sa.Connection, training: TrainingRun) -> None:
    """Record a run, in place of what was known of it."""
    tx.execute(trainings.delete().where(trainings.c.run == training.run))
    values = {**asdict(training), "figures": dict(training.figures), "history": [dict(s) for s in training.history]}
    tx.execute(trainings.insert().values(**values))


def get(tx: sa.Connection, run: str) -> TrainingRun | None:
    """A run with the record of its every step."""
    row = tx.execute(sa.select(trainings).where(trainings.c.run == run)).mappings().first()
    return _training(row) if row else None


def newest_of_a_round(tx: sa.Connection) -> TrainingRun | None:
    """The newest run of the newest round that has trained, without its history."""
    query = (
        sa.select(*WITHOUT_HISTORY)
        .where(trainings.c.round.is_not(None))
        .order_by(trainings.c.round.desc(), trainings.c.started_at.desc())
        .limit(1)
    )
    row = tx.execute(query).mappings().first()
    return _training(row) if row else None


def of_rounds(tx: sa.Connection, first: int) -> dict[str, TrainingRun]:
    """Runs of the rounds from the number `first` on, by name, without their histories."""
    rows = tx.execute(sa.select(*WITHOUT_HISTORY).where(trainings.c.round >= first)).mappings()
    return {row["run"]: _training(row) for row in rows}


def _training(row: Any) -> TrainingRun:
    return TrainingRun(**{**row, "history": tuple(row.get("history", ()))})
