"""What other rules would have made of a test: its traffic, as it was, looked at again from the start. Pure.

The arms and their shares are those of the day, and so is what settled when: rules on these (stages, settle_hours,
new_users, slow_s) change nothing here. What decides can be tried: levels, margins, fewest and most users and hours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kto_ray.config.deciding import RolloutSection
from kto_ray.records.rollouts import Look, RolloutState, RolloutStatus
from kto_ray.records.trials import FAULTS, Exposed, Part, Settled, Standing
from kto_ray.rollout import evidence, machine


@dataclass(frozen=True, slots=True)
class Replayed:
    """How a stage would have ended: `at` in seconds since the epoch, None where it would not have by the end of what is
    known, with what it then waited for."""

    stage: str
    action: machine.Action
    reason: str
    at: float | None
    look: Look | None


def replay(rules: RolloutSection, state: RolloutState, stage: int, began_at: float, parts: Sequence[Part]) -> Replayed:
    """One stage of a test under other rules, looked at as the loop looks, and when hours run out.

    Args:
        rules: of which the stages must be as many as the test's.
        state: the test, at any time, with the level that the rules' budget gives it.
        began_at: of the stage, in seconds since the epoch.
        parts: of all its users.
    """
    name, hours = (
        rules.stages[stage].name,
        rules.max_hours if rules.stages[stage].decides else rules.stages[stage].hours,
    )
    now = replace(
        state,
        stage=stage,
        weight=rules.stages[stage].weight,
        stage_started_at=began_at,
        status=RolloutStatus.RUNNING,
        ended_at=None,
        asked=(),
    )
    standing, last, decision = Standing(state.id, stage), None, None
    for at, settles, part in _events(parts, began_at + 3600 * hours):
        standing = standing if part is None else _with(standing, part, settles)
        if evidence.is_due(last, standing):
            last = evidence.look(rules, now, standing, at)
        assert last is not None
        decision = machine.decide(rules, now, last, at)
        if decision.action is not machine.Action.HOLD:
            return Replayed(name, decision.action, decision.reason, at, last)
    if decision is None:
        return Replayed(name, machine.Action.HOLD, "nobody got an answer", None, None)
    return Replayed(name, decision.action, decision.reason, None, last)


Event = tuple[float, bool, Part | None]  # when, whether the part settles then, whose; nobody's where hours run out


def _events(parts: Sequence[Part], end: float) -> list[Event]:
    """First answers and settlements of those who count, in order of time; the end where traffic reached it."""
    known = [part for part in parts if part.known]
    events: list[Event] = [(part.first_at, False, part) for part in known]
    events += [(part.settled_at, True, part) for part in known if part.settled_at is not None]
    events.sort(key=lambda event: event[:2])
    in_time = [event for event in events if event[0] <= end]
    return [*in_time, (end, False, None)] if len(in_time) < len(events) else in_time


def _with(standing: Standing, part: Part, settles: bool) -> Standing:
    if settles and part.outcome is not None and part.settled_at is not None:
        return replace(standing, trials=(*standing.trials, Settled(part.challenger, part.outcome)))
    if part.challenger:
        return replace(standing, challenger=_and_one(standing.challenger, part))
    return replace(standing, champion=_and_one(standing.champion, part))


def _and_one(arm: Exposed, part: Part) -> Exposed:
    return Exposed(arm.users + 1, arm.known + 1, *(getattr(arm, name) + (name in part.faults) for name in FAULTS))
