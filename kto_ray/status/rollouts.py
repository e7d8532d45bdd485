"""What is shown of A/B tests: GET /v1/rollout and `kto-ray rollout`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sa

from kto_ray.config import Config
from kto_ray.records.rollouts import ArmCount, Look, RolloutKind, RolloutState, RolloutStatus
from kto_ray.records.trials import Exposed
from kto_ray.rollout.machine import rules_of
from kto_ray.rollout.outlook import Outlook, outlook
from kto_ray.rollout.ratings import Ratings, ratings
from kto_ray.rollout.replay import Replayed, replay
from kto_ray.stats import budget
from kto_ray.store import exposed, rollouts, trials

SHOWN = 100  # of the newest tests


@dataclass(frozen=True, slots=True)
class ShownArms:
    champion: ArmCount
    challenger: ArmCount


@dataclass(frozen=True, slots=True)
class ShownExposed:
    champion: Exposed
    challenger: Exposed


@dataclass(frozen=True, slots=True)
class ShownTest:
    """A `RolloutState` without its salt, which tells who is in which arm."""

    id: str
    champion: str
    challenger: str
    stage: int
    weight: float
    status: RolloutStatus
    started_at: float
    stage_started_at: float
    ended_at: float | None
    reason: str | None
    level: float
    by_evidence: bool


@dataclass(frozen=True, slots=True)
class WatchedTest(ShownTest):
    """A test with its counts by stage and every look at it; `interval` is the newest. Of the present stage, `exposed`
    says what was wrong with answers and what users did, and `ratings` what came where answers asked for a thumb.
    `outlook` says what a live one waits for, and what it can still come to."""

    stage_name: str = ""
    counts: Mapping[str, ShownArms] = field(default_factory=dict)
    interval: tuple[float, float] = (-1.0, 1.0)
    exposed: ShownExposed | None = None
    ratings: Ratings | None = None
    outlook: Outlook | None = None
    history: tuple[Look, ...] = ()


@dataclass(frozen=True, slots=True)
class RolloutPage:
    """`rollout` is the newest test, running or ended; `holdback` that of the last promotion, while it goes on: a stage
    is a week, and the previous champion stands in the challenger's place."""

    rollout: WatchedTest | None
    rollouts: tuple[ShownTest, ...]
    holdback: WatchedTest | None = None


def page(tx: sa.Connection, config: Config) -> RolloutPage:
    every = rollouts.latest(tx, SHOWN)
    newest = _watched(tx, config, every[-1]) if every else None
    back = rollouts.live(tx, RolloutKind.HOLDBACK)
    watched = _watched(tx, config, back) if back is not None else None
    return RolloutPage(newest, tuple(ShownTest(**_shown(state)) for state in every), watched)


def replayed(tx: sa.Connection, config: Config, rollout: str | None) -> tuple[Replayed, ...]:
    """How each stage of a test, the newest where none is named, would have ended under the config's rules, at the level
    that their budget gives after the tests before it.

    Raises:
        ValueError: there is no such test.
    """
    newest = rollouts.latest(tx, 1)
    state = rollouts.get(tx, rollout) if rollout is not None else (newest[0] if newest else None)
    if state is None:
        raise ValueError(f"rollout {rollout!r} does not exist" if rollout else "there has been no rollout yet")
    if state.kind is not RolloutKind.TEST:
        raise ValueError(f"{rollout!r} is a holdback, which no rules of a test decide; name an A/B test")
    then = rules_of(config.rollout, state)
    fixed = ("stages", "settle_hours", "new_users", "slow_s", "long_tokens", "guards")
    of_the_day = {name: getattr(then, name) for name in fixed}
    rules = config.rollout.model_copy(update=of_the_day)
    earlier = [test for test in rollouts.finished(tx) if (test.started_at, test.id) < (state.started_at, state.id)]
    state = replace(state, level=budget.level(budget.spent(earlier), rules.alpha, rules.omega))
    found = []
    for stage in range(state.stage + 1):
        parts = trials.history(tx, state.id, stage)
        first = min((part.first_at for part in parts), default=state.started_at)  # about when the stage began
        began = state.stage_started_at if stage == state.stage else first
        found.append(replay(rules, state, stage, began, parts))
    return tuple(found)


def _shown(state: RolloutState) -> dict[str, Any]:
    return {name: getattr(state, name) for name in ShownTest.__slots__}


def _watched(tx: sa.Connection, config: Config, state: RolloutState) -> WatchedTest:
    rules, looks, arms = rules_of(config.rollout, state), rollouts.looks(tx, state.id), exposed.arms(tx, state)
    test = state.kind is RolloutKind.TEST
    names = {i: stage.name for i, stage in enumerate(rules.stages) if test}
    own = _shown(state)
    if looks:
        own["interval"] = (looks[-1].low, looks[-1].high)
    return WatchedTest(
        **own,
        stage_name=names.get(state.stage, f"week {state.stage + 1}"),
        # The last look at a stage holds its final counts.
        counts={names.get(look.stage, f"week {look.stage + 1}"): ShownArms(*look.arms) for look in looks},
        exposed=ShownExposed(*arms),
        ratings=ratings(*arms, rules.harm_alpha),
        outlook=outlook(rules, state, looks[-1], time.time()) if looks and state.live and test else None,
        history=tuple(looks),
    )
