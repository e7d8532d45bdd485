"""When a stage of the A/B test ends, and how, on a challenger's way to champion: pure functions on counts.

    canary (watches for harm) -> ... -> ab (decides) -> promoted | aborted

A watching stage ends in `abort` when the sequence says that the challenger is worse, and in `advance` once enough of
its users have judged. The deciding stage ends in `promote` when the interval of the difference lies above min_effect,
and in `abort` when it lies below zero (harm), cannot exceed min_effect any more (futility), or when users or hours run
out (no evidence of gain).

Each stage uses its own data only. Weights differ between stages and tastes drift with time: pooling a canary of 10%
with an A/B of 50% puts more of the champion's users into the early days than of the challenger's, so a drift in time
would look like a difference between arms (Simpson's paradox). Within a stage the weight is constant and the arms are
drawn alike at every moment. The price is that canary judgements are not evidence for promotion, which is what keeps
the error rate at alpha: only one sequence can ever promote.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace

from kto_ray.config.deciding import RolloutSection, RolloutStage
from kto_ray.records.requests import Act
from kto_ray.records.rollouts import ArmCount, RolloutState, RolloutStatus
from kto_ray.stats.sequential import interval

Counts = Mapping[str, tuple[ArmCount, ArmCount]]  # stage name -> (champion, challenger), first judgements in that stage

_NONE = (ArmCount(0, 0), ArmCount(0, 0))


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now and why, in words. `interval` is that of p_challenger - p_champion in the present stage."""

    action: Action
    reason: str
    interval: tuple[float, float]


class Action(enum.StrEnum):
    HOLD = "hold"
    ADVANCE = "advance"
    PROMOTE = "promote"
    ABORT = "abort"


def start(config: RolloutSection, champion: str, challenger: str, rollout: str, salt: str, now: float) -> RolloutState:
    """A new rollout in its first stage. `salt` must be new for each rollout, so that arms are drawn anew."""
    if champion == challenger:
        raise ValueError(f"champion and challenger are both {champion!r}; a rollout compares two adapters")
    return RolloutState(
        id=rollout,
        champion=champion,
        challenger=challenger,
        salt=salt,
        stage=0,
        weight=config.stages[0].weight,
        status=RolloutStatus.RUNNING,
        started_at=now,
        stage_started_at=now,
    )


def decide(config: RolloutSection, state: RolloutState, counts: Counts, now: float) -> Decision:
    """The decision on the present counts. May be asked as often as one likes: the error rate stays (see sequential).

    A stage without counts has no judged users yet. A paused or ended rollout holds; hours go on counting while it is
    paused, as traffic and evidence do. `max_users` counts the judged users of both arms in the deciding stage.
    """
    stage = config.stages[state.stage]
    champion, challenger = counts.get(stage.name, _NONE)
    bounds = interval(champion, challenger, config.alpha)
    if state.status is not RolloutStatus.RUNNING:
        return Decision(Action.HOLD, f"the rollout is {state.status}", bounds)
    seen = _in_words(config, bounds, champion, challenger)
    if bounds[1] < 0:
        return Decision(Action.ABORT, f"the challenger is worse: {seen}", bounds)
    hours = (now - state.started_at) / 3600
    if stage.decides:
        action, reason = _decide_ab(config, stage, bounds, champion, challenger)
    else:
        action, reason = _watch(stage, challenger)
    if action is Action.HOLD and hours >= config.max_hours:
        action, reason = Action.ABORT, f"no evidence of gain within {config.max_hours:g} hours (max_hours)"
    return Decision(action, f"{reason}: {seen}", bounds)


def _watch(stage: RolloutStage, challenger: ArmCount) -> tuple[Action, str]:
    if challenger.users < stage.min_users:
        return Action.HOLD, f"stage {stage.name!r} waits for {stage.min_users} judged users of the challenger"
    return Action.ADVANCE, f"stage {stage.name!r} saw no harm among {stage.min_users} judged users of the challenger"


def _decide_ab(
    config: RolloutSection,
    stage: RolloutStage,
    bounds: tuple[float, float],
    champion: ArmCount,
    challenger: ArmCount,
) -> tuple[Action, str]:
    low, high = bounds
    if min(champion.users, challenger.users) >= stage.min_users and low > config.min_effect:
        return Action.PROMOTE, f"the challenger is better by more than {config.min_effect:g}"
    if high <= config.min_effect:
        return Action.ABORT, f"a gain above {config.min_effect:g} (min_effect) is ruled out"
    if champion.users + challenger.users >= config.max_users:
        return Action.ABORT, f"no evidence of gain among {config.max_users} judged users (max_users)"
    return Action.HOLD, f"stage {stage.name!r} goes on, undecided"


def _in_words(config: RolloutSection, bounds: tuple[float, float], champion: ArmCount, challenger: ArmCount) -> str:
    low, high = bounds
    return (
        f"{challenger.up} up of {challenger.users} users against the champion's {champion.up} of {champion.users}, "
        f"difference {low:+.3f} to {high:+.3f} ({1 - config.alpha:.0%} confidence sequence)"
    )


def step(config: RolloutSection, state: RolloutState, decision: Decision, now: float) -> RolloutState:
    """The state after a decision; unchanged for `hold`."""
    if decision.action is Action.ADVANCE:
        return advance(config, state, now)
    if decision.action is Action.PROMOTE:
        return _end(state, RolloutStatus.PROMOTED, decision.reason, now)
    if decision.action is Action.ABORT:
        return _end(state, RolloutStatus.ABORTED, decision.reason, now)
    return state


def advance(config: RolloutSection, state: RolloutState, now: float) -> RolloutState:
    """The next stage: its weight, its own clock and, with that, its own counts.

    Raises:
        ValueError: the rollout is not running, or it stands in its last stage.
    """
    if state.status is not RolloutStatus.RUNNING or state.stage + 1 >= len(config.stages):
        raise ValueError(
            f"rollout {state.id!r} cannot advance: it is {state.status} in stage {state.stage + 1} "
            f"of {len(config.stages)}"
        )
    stage = state.stage + 1
    return replace(state, stage=stage, weight=config.stages[stage].weight, stage_started_at=now)


def apply(state: RolloutState, act: Act, now: float) -> RolloutState:
    """What an operator asks for. `promote` and `abort` end a live rollout, whatever the statistics say.

    Raises:
        ValueError: the request does not fit the state (an ended rollout, a pause of a paused one, ...) or is unknown.
    """
    if state.status in (RolloutStatus.PROMOTED, RolloutStatus.ABORTED):
        raise ValueError(f"cannot {act} rollout {state.id!r}: it has ended ({state.status})")
    if act is Act.PROMOTE:
        return _end(state, RolloutStatus.PROMOTED, "promoted by an operator", now)
    if act is Act.ABORT:
        return _end(state, RolloutStatus.ABORTED, "aborted by an operator", now)
    if act is Act.PAUSE and state.status is RolloutStatus.RUNNING:
        return replace(state, status=RolloutStatus.PAUSED, reason="paused by an operator")
    if act is Act.RESUME and state.status is RolloutStatus.PAUSED:
        return replace(state, status=RolloutStatus.RUNNING, reason=None)
    if act in (Act.PAUSE, Act.RESUME):
        fits = Act.RESUME if act is Act.PAUSE else Act.PAUSE
        raise ValueError(f"cannot {act} rollout {state.id!r}: it is {state.status}; {fits} is what fits now")
    raise ValueError(f"{act} is nothing that a rollout can be asked")


def _end(state: RolloutState, status: RolloutStatus, reason: str, now: float) -> RolloutState:
    return replace(state, status=status, reason=reason, ended_at=now)
