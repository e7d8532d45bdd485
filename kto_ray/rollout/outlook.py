"""What a test in its deciding stage can still come to, at the rate at which trials settle. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kto_ray.config.deciding import RolloutSection
from kto_ray.records.rollouts import Look, RolloutState
from kto_ray.rollout import machine
from kto_ray.stats import power

DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Outlook:
    """`verdict` is what would be done now and why, in words: what a promotion waits for, if it waits. `trials_left` may
    settle before users or hours run out, at `trials_per_day`; `detectable_gain` is the difference that is then promoted
    in 80% of tests, None where even the largest is not. Before the deciding stage only the verdict is known."""

    verdict: str
    trials_per_day: float | None = None
    trials_left: int | None = None
    detectable_gain: float | None = None


def outlook(rules: RolloutSection, state: RolloutState, look: Look, now: float) -> Outlook:
    decision = machine.decide(rules, state, look, now)
    verdict = f"{decision.action}: {decision.reason}"
    if decision.action is machine.Action.PROMOTE and state.reason:
        verdict += f"; it {state.reason}"  # for replicas
    passed = now - state.stage_started_at - 3600 * (rules.burn_in_hours + rules.settle_hours)  # none settles before
    if not machine.stage_of(rules, state).decides or passed <= 0:
        return Outlook(verdict)
    settled = look.n_champion + look.n_challenger
    per_day = settled / passed * DAY_S
    days_left = max(0.0, machine.hours_of(rules, state) * 3600 - (now - state.stage_started_at)) / DAY_S
    left = math.floor(per_day * days_left)
    if "users" not in state.asked:
        left = max(0, min(rules.max_users - settled, left))
    return Outlook(verdict, per_day, left, _detectable(rules, state, look, settled + left))


def _detectable(rules: RolloutSection, state: RolloutState, look: Look, trials: int) -> float | None:
    rate = look.up_champion / look.n_champion if look.n_champion else 0.5
    level = machine.level_of(rules, state)
    if trials == 0 or not 0 < rate < 1 or level == 0:
        return None
    gain = power.detectable(trials, rate, level, state.weight)
    return gain if math.isfinite(gain) else None
