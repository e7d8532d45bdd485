"""What is known of a training run, of a round or by hand."""

from __future__ import annotations

from dataclasses import dataclass, field

from kto_ray.records.completions import Json
from kto_ray.records.training import Trained


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """`figures` are those of `TrainProgress` while it runs, and once it has ended those of its last step
    (`StepRecord`) and of the whole (`TrainResult`)."""

    run: str
    snapshot: str
    started_at: float
    round: int | None = None  # None: by hand
    adapter: str | None = None  # that came of it
    ended_at: float | None = None
    figures: Json = field(default_factory=dict)
    history: tuple[Json, ...] = ()  # a `StepRecord` an optimizer step, of an ended one


def ended_run(run: str, trained: Trained, started_at: float, ended_at: float, round: int | None = None) -> TrainingRun:
    """The record of a run that came to its end."""
    return TrainingRun(
        run=run,
        snapshot=trained.version.snapshot or "",
        started_at=started_at,
        round=round,
        adapter=trained.version.name,
        ended_at=ended_at,
        figures={**trained.history[-1], **trained.figures},
        history=trained.history,
    )
