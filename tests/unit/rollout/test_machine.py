"""The rollout's machine: what ends a stage, what operators may ask, and how often luck gets promoted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from kto_ray.config.deciding import RolloutSection, RolloutStage
from kto_ray.records.requests import Act
from kto_ray.records.rollouts import ArmCount, RolloutState, RolloutStatus
from kto_ray.rollout.machine import Action, advance, apply, decide, start, step

CONFIG = RolloutSection(
    stages=(
        RolloutStage(name="canary", weight=0.1, min_users=5),
        RolloutStage(name="ab", weight=0.5, decides=True, min_users=20),
    ),
    max_users=300,
    max_hours=72.0,
)
CANARY = start(CONFIG, "policy@base", "policy@v1-aaaaaa", "r1", "salt", now=1000.0)
AB = advance(CONFIG, CANARY, now=2000.0)


def counts(stage: str, champion: tuple[int, int], challenger: tuple[int, int]) -> dict[str, tuple[ArmCount, ArmCount]]:
    return {stage: (ArmCount(*champion), ArmCount(*challenger))}


def test_it_starts_in_the_first_stage() -> None:
    assert (CANARY.stage, CANARY.weight, CANARY.status) == (0, 0.1, RolloutStatus.RUNNING)
    with pytest.raises(ValueError, match="both"):
        start(CONFIG, "policy@base", "policy@base", "r1", "salt", now=0.0)


def test_a_canary_waits_advances_or_aborts_but_never_promotes() -> None:
    assert decide(CONFIG, CANARY, {}, 1001.0).action is Action.HOLD
    assert decide(CONFIG, CANARY, counts("canary", (40, 20), (4, 0)), 1001.0).action is Action.HOLD
    assert decide(CONFIG, CANARY, counts("canary", (40, 20), (5, 2)), 1001.0).action is Action.ADVANCE
    assert decide(CONFIG, CANARY, counts("canary", (200, 0), (200, 200)), 1001.0).action is Action.ADVANCE
    harm = decide(CONFIG, CANARY, counts("canary", (60, 58), (20, 0)), 1001.0)
    assert harm.action is Action.ABORT
    assert harm.interval[1] < 0
    assert "worse" in harm.reason
    assert "0 up of 20 users against the champion's 58 of 60" in harm.reason


def test_the_deciding_stage_promotes_on_evidence_of_gain() -> None:
    decision = decide(CONFIG, AB, counts("ab", (60, 6), (60, 40)), 2001.0)
    assert decision.action is Action.PROMOTE
    assert decision.interval[0] > 0
    assert "95% confidence sequence" in decision.reason
    ended = step(CONFIG, AB, decision, 2001.0)
    assert (ended.status, ended.ended_at, ended.reason) == (RolloutStatus.PROMOTED, 2001.0, decision.reason)


def test_the_deciding_stage_needs_its_users_on_both_arms() -> None:
    few = counts("ab", (19, 0), (60, 60))
    assert decide(CONFIG, AB, few, 2001.0).interval[0] > 0
    assert decide(CONFIG, AB, few, 2001.0).action is Action.HOLD


def test_stages_do_not_share_their_data() -> None:
    """Overwhelming canary data says nothing in the deciding stage."""
    decision = decide(CONFIG, AB, counts("canary", (500, 0), (500, 500)), 2001.0)
    assert decision.action is Action.HOLD
    assert decision.interval == (-1.0, 1.0)


@pytest.mark.parametrize(
    ("champion", "challenger", "why"),
    [((60, 40), (60, 6), "worse"), ((150, 45), (150, 45), "no evidence of gain among 300")],
)
def test_the_deciding_stage_aborts(champion: tuple[int, int], challenger: tuple[int, int], why: str) -> None:
    decision = decide(CONFIG, AB, counts("ab", champion, challenger), 2001.0)
    assert decision.action is Action.ABORT
    assert why in decision.reason
    assert step(CONFIG, AB, decision, 2001.0).status is RolloutStatus.ABORTED


def test_a_wanted_gain_that_is_ruled_out_is_futile() -> None:
    config = CONFIG.model_copy(update={"min_effect": 0.2, "max_users": 100_000})
    decision = decide(config, AB, counts("ab", (2000, 600), (2000, 640)), 2001.0)
    assert decision.action is Action.ABORT
    assert "ruled out" in decision.reason


def test_a_gain_must_exceed_min_effect() -> None:
    config = CONFIG.model_copy(update={"min_effect": 0.3})
    gain = counts("ab", (60, 6), (60, 40))
    assert decide(CONFIG, AB, gain, 2001.0).action is Action.PROMOTE
    assert decide(config, AB, gain, 2001.0).action is Action.HOLD


@pytest.mark.parametrize("state", [CANARY, AB])
def test_time_runs_out_in_every_stage(state: RolloutState) -> None:
    late = CANARY.started_at + 72 * 3600
    assert decide(CONFIG, state, {}, late - 1).action is Action.HOLD
    decision = decide(CONFIG, state, {}, late)
    assert decision.action is Action.ABORT
    assert "72 hours" in decision.reason


def test_evidence_at_the_last_moment_still_promotes() -> None:
    late = CANARY.started_at + 72 * 3600
    assert decide(CONFIG, AB, counts("ab", (200, 6), (200, 80)), late).action is Action.PROMOTE


def test_advancing_takes_the_next_weight_and_clock() -> None:
    assert (AB.stage, AB.weight, AB.stage_started_at, AB.started_at) == (1, 0.5, 2000.0, 1000.0)
    assert step(CONFIG, CANARY, decide(CONFIG, CANARY, counts("canary", (9, 3), (5, 2)), 2000.0), 2000.0) == AB
    with pytest.raises(ValueError, match="stage 2 of 2"):
        advance(CONFIG, AB, now=0.0)


def test_paused_holds_and_resumes() -> None:
    paused = apply(AB, Act.PAUSE, 2500.0)
    assert paused.status is RolloutStatus.PAUSED
    decision = decide(CONFIG, paused, counts("ab", (60, 6), (60, 40)), 2501.0)
    assert decision.action is Action.HOLD
    assert step(CONFIG, paused, decision, 2501.0) == paused
    assert apply(paused, Act.RESUME, 2600.0) == AB


@pytest.mark.parametrize("state", [CANARY, AB, replace(AB, status=RolloutStatus.PAUSED)])
def test_operators_may_end_a_live_rollout(state: RolloutState) -> None:
    promoted, aborted = apply(state, Act.PROMOTE, 3000.0), apply(state, Act.ABORT, 3000.0)
    assert (promoted.status, promoted.ended_at) == (RolloutStatus.PROMOTED, 3000.0)
    assert (aborted.status, aborted.ended_at) == (RolloutStatus.ABORTED, 3000.0)
    assert promoted.reason == "promoted by an operator"


@pytest.mark.parametrize("act", [Act.PROMOTE, Act.ABORT, Act.PAUSE, Act.RESUME])
@pytest.mark.parametrize("status", [RolloutStatus.PROMOTED, RolloutStatus.ABORTED])
def test_an_ended_rollout_takes_no_request(act: Act, status: RolloutStatus) -> None:
    with pytest.raises(ValueError, match="has ended"):
        apply(replace(AB, status=status), act, 3000.0)


def test_requests_must_fit() -> None:
    with pytest.raises(ValueError, match="pause is what fits"):
        apply(AB, Act.RESUME, 3000.0)
    with pytest.raises(ValueError, match="resume is what fits"):
        apply(apply(AB, Act.PAUSE, 2500.0), Act.PAUSE, 3000.0)
    with pytest.raises(ValueError, match="nothing that a rollout can be asked"):
        apply(AB, Act.ROLLBACK, 3000.0)


def run(p0: float, p1: float, random: np.random.Generator) -> RolloutState:
    """A whole rollout, canary and A/B, with a decision after every judged user."""
    state, now = CANARY, CANARY.started_at
    seen: dict[str, tuple[ArmCount, ArmCount]] = {}
    while state.status is RolloutStatus.RUNNING:
        now += 1.0
        name = CONFIG.stages[state.stage].name
        both = list(seen.get(name, (ArmCount(0, 0), ArmCount(0, 0))))
        arm = int(random.random() < state.weight)
        up = int(random.random() < (p0, p1)[arm])
        both[arm] = ArmCount(both[arm].users + 1, both[arm].up + up)
        seen[name] = (both[0], both[1])
        state = step(CONFIG, state, decide(CONFIG, state, seen, now), now)
    return state


def test_a_candidate_that_is_no_better_is_promoted_at_most_at_the_stated_rate() -> None:
    """80 rollouts end to end at p1 = p0, decided after every user, and 30 with a worse candidate."""
    random = np.random.default_rng(0)
    promoted = [run(0.2, 0.2, random).status for _ in range(80)].count(RolloutStatus.PROMOTED)
    assert promoted <= binom.ppf(0.999, 80, CONFIG.alpha)
    worse = [run(0.4, 0.2, random).status for _ in range(30)].count(RolloutStatus.PROMOTED)
    assert worse <= binom.ppf(0.999, 30, CONFIG.alpha)


def test_a_better_candidate_is_promoted() -> None:
    random = np.random.default_rng(1)
    promoted = [run(0.15, 0.5, random).status for _ in range(20)].count(RolloutStatus.PROMOTED)
    assert promoted >= 19
