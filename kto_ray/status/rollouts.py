"""What is shown of A/B tests: GET /v1/rollout and `kto-ray rollout`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError

from kto_ray.config import Config
from kto_ray.config.deciding import RolloutSection
from kto_ray.records.rollouts import ArmCount, Look, RolloutKind, RolloutState, RolloutStatus
from kto_ray.records.trials import Exposed, Part
from kto_ray.rollout import base
from kto_ray.rollout.begun import rules_of
from kto_ray.rollout.burn_in import with_stage
from kto_ray.rollout.outlook import Outlook, outlook
from kto_ray.rollout.ratings import Ratings, ratings
from kto_ray.rollout.replay import Replayed, replay
from kto_ray.stats import budget, strata
from kto_ray.stats.budget import Spent
from kto_ray.store import exposed, rollouts, trials

SHOWN = 100  # of the newest tests
LATE_S = 60.0  # at most, from the end of a stage's hours to the look that ends it


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
class ShownGain:
    """What the whole loop gains: the share of users judging an answer up with whatever was champion, less the share
    with the base model, by the holdback on that, as the mean over the `weeks` that are over, each by what it can tell.
    The chance that `interval` ever excludes it is 5%. It decides nothing."""

    id: str
    since: float
    weight: float  # the share of users on the base model
    base: str
    weeks: int
    users_champion: int  # settled trials
    users_base: int
    gain: float | None
    interval: tuple[float, float]
    in_words: str


@dataclass(frozen=True, slots=True)
class ShownBudget:
    """The error that the loop may still spend over its life (`kto_ray.stats.budget`): what is `left` of
    `rollout.alpha` after so many tests that ended, so many of them promoted by evidence. `level` is the next test's,
    under the config of now, and `after_promotion` or `after_none` that of the one after it, if it promotes or not. The
    life began at `since`, when `by` reset the budget, and said `why`; None where nobody ever did."""

    alpha: float
    left: float
    tests: int
    promotions: int
    level: float
    after_promotion: float
    after_none: float
    since: float | None
    by: str | None
    why: str | None
    in_words: str


@dataclass(frozen=True, slots=True)
class RolloutPage:
    """`rollout` is the newest test, running or ended; `holdback` that of the last promotion, while it goes on: a stage
    is a week, and the previous champion stands in the challenger's place. `loop` is what the whole loop gains over the
    base model, `budget` what tests may still spend, the one in progress not yet counted."""

    rollout: WatchedTest | None
    rollouts: tuple[ShownTest, ...]
    holdback: WatchedTest | None = None
    loop: ShownGain | None = None
    budget: ShownBudget | None = None


def page(tx: sa.Connection, config: Config) -> RolloutPage:
    every = rollouts.latest(tx, SHOWN)
    newest = _watched(tx, config, every[-1]) if every else None
    back = rollouts.live(tx, RolloutKind.HOLDBACK)
    watched = _watched(tx, config, back) if back is not None else None
    return RolloutPage(
        newest, tuple(ShownTest(**_shown(state)) for state in every), watched, loop_gain(tx), spending(tx, config)
    )


def spending(tx: sa.Connection, config: Config) -> ShownBudget:
    alpha, omega = config.rollout.alpha, config.rollout.omega
    life = budget.spent(rollouts.finished(tx))
    left, promotions, level = budget.left(life, alpha), budget.promotions(life), budget.level(life, alpha, omega)
    gains, none = (budget.level([*life, Spent(level, promoted)], alpha, omega) for promoted in (True, False))
    words = (
        f"{left:.3g} of {alpha:g} (rollout.alpha) is left after {len(life)} tests and {promotions} promotions by "
        f"evidence: the next test has a level of {level:.3g}, the one after it {gains:.3g} if that promotes, "
        f"{none:.3g} if not"
    )
    reset, levels = rollouts.last_reset(tx), (level, gains, none)
    if reset is None:
        return ShownBudget(alpha, left, len(life), promotions, *levels, None, None, None, words)
    when = datetime.fromtimestamp(reset.at, UTC).isoformat(" ", "minutes")
    words += f"; since {when}, when {reset.who} began it anew: {reset.why}"
    return ShownBudget(alpha, left, len(life), promotions, *levels, reset.at, reset.who, reset.why, words)


def loop_gain(tx: sa.Connection) -> ShownGain | None:
    """None before there was a champion of the loop's own, and where `rollout.base_holdback` is 0."""
    state = rollouts.live(tx, RolloutKind.BASE)
    if state is None:
        return None
    sums = base.sums_of(state)
    low, high = strata.interval(sums, base.ALPHA)
    words = f"{state.weight:.1%} of users stay on {state.challenger}, drawn anew each week, but within a test: "
    if sums.mean is None:
        words += "no week is over yet in which users of both judged"
    else:
        words += (
            f"the whole loop's gain over it, whatever was champion, is {sums.mean:+.3f} ({low:+.3f} to {high:+.3f}), "
            f"by {sums.one} and {sums.other} users in {sums.strata} weeks"
        )
    users = (sums.one, sums.other)
    began = (state.id, state.started_at, state.weight, state.challenger)
    return ShownGain(*began, sums.strata, *users, sums.mean, (low, high), words)


# Rules of what was drawn, settled and watched, which a replay takes as they were, and of what happens beside a decision
AS_IT_WAS = ("stages", "burn_in_hours", "settle_hours", "new_users", "slow_s", "long_tokens", "guards")
BESIDE = ("max_detectable", "holdback", "base_holdback", "staff", "max_paused_hours")


@dataclass(frozen=True, slots=True)
class Replay:
    """How each stage would have ended. `without_effect` are the rules that are set otherwise than the test had them,
    and change nothing here; `notes` say what else is not as it was."""

    stages: tuple[Replayed, ...]
    without_effect: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def replayed(tx: sa.Connection, config: Config, rollout: str | None) -> Replay:
    """How each stage of a test, the newest where none is named, would have ended under the config's rules, at the level
    that their budget gives after the tests before it.

    Raises:
        ValueError: there is no such test, or the rules are none together with those that a replay takes from the test.
    """
    newest = rollouts.latest(tx, 1)
    state = rollouts.get(tx, rollout) if rollout is not None else (newest[0] if newest else None)
    if state is None:
        raise ValueError(f"rollout {rollout!r} does not exist" if rollout else "there has been no rollout yet")
    if state.kind is not RolloutKind.TEST:
        raise ValueError(f"{rollout!r} is a holdback, which no rules of a test decide; name an A/B test")
    then = rules_of(config.rollout, state)
    rules = _tried(config.rollout, then)
    earlier = [
        test for test in rollouts.finished(tx, state.id) if (test.started_at, test.id) < (state.started_at, state.id)
    ]
    state = replace(state, level=budget.level(budget.spent(earlier), rules.alpha, rules.omega))
    parts = [trials.history(tx, state.id, stage) for stage in range(state.stage + 1)]
    began, until = _began(tx, state, parts), state.ended_at or time.time()
    ends = [*(next_ + LATE_S for next_ in began[1:]), until]
    found = [replay(rules, state, stage, began[stage], ends[stage], parts[stage]) for stage in range(state.stage + 1)]
    return Replay(tuple(found), _without_effect(config.rollout, then), _notes(state))


def _began(tx: sa.Connection, state: RolloutState, parts: Sequence[Sequence[Part]]) -> list[float]:
    """When each stage began; of those that are over, as the first look or answer has it, which come at once."""
    came = {look.stage: look.at for look in reversed(rollouts.looks(tx, state.id))}
    over = [min([part.first_at for part in parts[i]] + [came.get(i, state.started_at)]) for i in range(state.stage)]
    return [*over, state.stage_started_at]


def _tried(given: RolloutSection, then: RolloutSection) -> RolloutSection:
    """The rules that are tried, with what a replay takes from the test."""
    of_the_day = {name: getattr(then, name) for name in AS_IT_WAS}
    try:
        return RolloutSection.model_validate(given.model_copy(update=of_the_day).model_dump())
    except ValidationError as error:
        words = "; ".join(fault["msg"].removeprefix("Value error, ") for fault in error.errors())
        kept = ", ".join(AS_IT_WAS)
        raise ValueError(f"these rules are none with what the test had of {kept}: {words}") from None


def _without_effect(given: RolloutSection, then: RolloutSection) -> tuple[str, ...]:
    """Of stages, what the config has becomes what a test has by its burn-in."""
    begun = with_stage(given)
    names = (*AS_IT_WAS, *(name for name in BESIDE if name != "staff"))  # no test keeps who is staff
    return tuple(f"rollout.{name}" for name in names if getattr(begun, name) != getattr(then, name))


def _notes(state: RolloutState) -> tuple[str, ...]:
    if state.status_at is None:
        return ()
    return ("it was paused, and is replayed as if nobody had: a pause decides nothing, and who is asked ends a stage",)


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
        outlook=outlook(rules, state, looks[-1], time.time(), looks) if looks and state.live and test else None,
        history=tuple(looks),
    )
