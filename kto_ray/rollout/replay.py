"""What other rules would have made of a test: its traffic, as it was, looked at again from the start. Pure.

The arms and their shares are those of the day, and so is what settled when and what was watched: rules on these
(stages, burn_in_hours, settle_hours, new_users, slow_s, long_tokens, guards) change nothing here, nor do those on what
happens beside a decision (max_detectable, the holdbacks, staff, max_paused_hours). Nobody pauses. What decides can be
tried: levels, margins, fewest and most users and hours.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kto_ray.config.deciding import RolloutSection
from kto_ray.records.rollouts import Look, RolloutState, RolloutStatus
from kto_ray.records.trials import Part, Settled, Standing
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


def replay(
    rules: RolloutSection, state: RolloutState, stage: int, began_at: float, until: float, parts: Sequence[Part]
) -> Replayed:
    """One stage of a test under other rules, looked at as the loop looks, and when hours run out.

    Args:
        rules: of which the stages must be as many as the test's.
        state: the test, at any time, with the level that the rules' budget gives it.
        began_at: of the stage, in seconds since the epoch.
        until: when it ended, or what is known of it ends, likewise.
        parts: of all its users.
    """
    now = replace(
        state,
        stage=stage,
        weight=rules.stages[stage].weight,
        stage_started_at=began_at,
        status=RolloutStatus.RUNNING,
        ended_at=None,
        asked=(),
    )
    decides, name = rules.stages[stage].decides, rules.stages[stage].name
    # A watching stage goes on beyond its hours, while its challenger answers nobody
    hours = (machine.hours_of(rules, now),) if decides else (rules.stages[stage].hours, rules.max_hours)
    standing, last, decision = Standing(state.id, stage), None, None
    for at, what, part in _events(parts, [began_at + 3600 * each for each in hours], until):
        standing = standing if part is None else _with(standing, part, what)
        if evidence.is_due(last, standing):
            last = evidence.look(rules, now, standing, at)
        assert last is not None
        decision = machine.decide(rules, now, last, at)
        if decision.action is not machine.Action.HOLD:
            return Replayed(name, decision.action, decision.reason, at, last)
    if decision is None:
        return Replayed(name, machine.Action.HOLD, "nobody got an answer", None, None)
    return Replayed(name, decision.action, decision.reason, None, last)


class What(enum.IntEnum):
    """Happens to a user, in this order."""

    ANSWERED = 0
    SETTLED = 1
    READ = 2  # what they did
    OVER = 3  # hours run out


Event = tuple[float, What, Part | None]  # when, what, whose


def _events(parts: Sequence[Part], ends: Sequence[float], until: float) -> list[Event]:
    """What happens to those who count, in order of time, and hours that run out, where what is known reaches that."""
    known = [part for part in parts if part.known]
    events: list[Event] = [(part.first_at, What.ANSWERED, part) for part in known]
    events += [(part.settled_at, What.SETTLED, part) for part in known if part.settled_at is not None]
    read = (part for part in known if part.react_by is not None and part.reactions is not None)
    events += [(part.react_by, What.READ, part) for part in read if part.react_by is not None]
    known_to = max([until, *(event[0] for event in events)])
    events += [(end, What.OVER, None) for end in ends if end <= known_to]
    return sorted(events, key=lambda event: event[:2])


def _with(standing: Standing, part: Part, what: What) -> Standing:
    if what is What.SETTLED:
        assert part.outcome is not None
        return replace(standing, trials=(*standing.trials, Settled(part.challenger, part.outcome)))
    arm = standing.challenger if part.challenger else standing.champion
    names = ("users", "known", *part.faults) if what is What.ANSWERED else ("observed", *(part.reactions or ()))
    more = replace(arm, **{name: getattr(arm, name) + 1 for name in names})
    return replace(standing, challenger=more) if part.challenger else replace(standing, champion=more)
