"""What a person was asked about a stage, and has answered by resuming it: the words of `RolloutState.asked`. Pure.

harm, futility, users   a criterion of `rollout.ask`
faults:slow             which of the guards it was; of old rows, faults alone is all of them
hours, hours@340.5      that hours ran out, and once it is answered, how old the stage was (hours)
"""

from __future__ import annotations

from dataclasses import replace

from kto_ray.config.deciding import RolloutSection
from kto_ray.records.rollouts import RolloutState


def asks(rules: RolloutSection, criterion: str) -> bool:
    """Whether a person is asked about it."""
    return criterion.partition(":")[0] in rules.ask


def answered(state: RolloutState, criterion: str) -> bool:
    """Whether a person was asked, so that the stage, which goes on, does so in spite of it."""
    words = [word.partition("@")[0] for word in state.asked]
    return criterion in words or criterion.partition(":")[0] in words


def resumed(state: RolloutState, age: float) -> RolloutState:
    """With the age of its stage (hours) kept, where a person was asked about hours: what is paused and resumed later
    gives no further ones."""
    return replace(state, asked=tuple(f"{word}@{age:.6f}" if word == "hours" else word for word in state.asked))


def prolonged_at(state: RolloutState) -> float | None:
    """The age of the stage (hours) when a person gave it as many hours again; None where nobody has. Of old rows, when
    the test was last paused or resumed."""
    if not answered(state, "hours"):
        return None
    kept = [float(word.partition("@")[2]) for word in state.asked if word.startswith("hours@")]
    last = state.status_at if state.status_at is not None else state.stage_started_at
    return kept[0] if kept else (last - state.stage_started_at) / 3600
