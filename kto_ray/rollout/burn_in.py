"""The first hours with the deciding share of users, while all is new: a stage of its own, which watches for harm, and
of which nobody counts towards a gain. Pure.

A test writes it among its rules when it begins. Its hours are some of `max_hours` and `min_hours`. A test from before
it was a stage waits for as long in its deciding stage, blind.
"""

from __future__ import annotations

from kto_ray.config.deciding import BURN_IN, RolloutSection, RolloutStage


def with_stage(rules: RolloutSection) -> RolloutSection:
    """The rules that a test begins with."""
    *watching, decides = rules.stages
    if rules.burn_in is None or _is(watching[-1:]):
        return rules
    return rules.model_copy(update={"stages": (*watching, rules.burn_in, decides)})


def before(rules: RolloutSection, stage: int) -> float:
    """The hours of the burn-in that were a stage right before this one; 0 of most."""
    last = rules.stages[max(0, stage - 1) : stage]
    return last[0].hours if _is(last) else 0.0


def _is(stages: tuple[RolloutStage, ...] | list[RolloutStage]) -> bool:
    return any(stage.name == BURN_IN and stage.exposed is None for stage in stages)
