"""The burn-in is a stage that watches for harm, and of whose users none counts towards a gain."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kto_ray.config.deciding import RolloutSection
from kto_ray.loop.trial import SPREAD_S, count
from kto_ray.records.completions import Arm
from kto_ray.records.rollouts import RolloutKind, RolloutState
from kto_ray.records.trials import Standing
from kto_ray.records.users import unit_interval
from kto_ray.rollout import burn_in, evidence, machine
from kto_ray.rollout.begun import rules_of
from kto_ray.rollout.machine import Action, advance, decide, hours_of, lacking, start
from kto_ray.store import Store, completions, feedback, rollouts, trials
from tests.support.rows import completion, thumb

HOUR = 3600.0
CONFIG = RolloutSection(burn_in_hours=168, new_users=True)
CANARY = start(CONFIG, "policy@base", "policy@v1", "r1", "salt", 0.005, 0.0)
RULES = rules_of(CONFIG, CANARY)
BURNS = advance(RULES, CANARY, 0.0)
DECIDES = advance(RULES, BURNS, 168 * HOUR)


def test_it_is_a_stage_of_the_test_with_the_share_of_the_deciding_one() -> None:
    assert [stage.name for stage in RULES.stages] == ["canary", "burn-in", "ab"]
    assert (BURNS.weight, DECIDES.weight) == (0.5, 0.5)
    assert burn_in.with_stage(RULES) == RULES, "once"
    assert burn_in.with_stage(RolloutSection()) == RolloutSection()
    alone = burn_in.with_stage(RolloutSection.model_validate({**CONFIG.model_dump(), "stages": [CONFIG.stages[1]]}))
    assert [stage.name for stage in alone.stages] == ["burn-in", "ab"]


@pytest.mark.parametrize("hours", [0, 24])
def test_no_other_stage_has_its_name(hours: float) -> None:
    own = {"name": "burn-in", "weight": 0.2, "hours": 5}
    with pytest.raises(ValueError, match="a stage has the name burn-in, which is that of burn_in_hours"):
        RolloutSection.model_validate({"burn_in_hours": hours, "stages": [own, CONFIG.stages[-1].model_dump()]})
    assert RolloutSection.model_validate(RULES.model_dump()) == RULES, "as a replay has it"


def _answers(store: Store, state: RolloutState, at: float, users: int = 400) -> None:
    """The challenger's are cut off and thumbed down, the champion's liked."""
    come, said = [], []
    for i in range(users):
        user, name = f"u{i}", f"{state.stage}-{i}"
        worse = unit_interval("salt", user) < state.weight
        arm, adapter = (Arm.CHALLENGER, "policy@v1") if worse else (Arm.CHAMPION, "policy@base")
        ends = "length" if worse else "stop"
        answer = completion(name, user=user, arm=arm, adapter=adapter, rollout="r1", created_at=at)
        come.append(replace(answer, finish_reason=ends))
        said.append(thumb(f"t{name}", name, user=user, value=not worse, created_at=at + 5))
    with store.write() as tx:
        completions.insert_all(tx, come)
    with store.write() as tx:
        feedback.record_all(tx, said)


def _decided(store: Store, now: float) -> machine.Decision:
    with store.write() as tx:
        for _ in range(3):
            count(tx, CONFIG, RolloutKind.TEST, now)
    with store.read() as tx:
        state = rollouts.live(tx)
        assert state is not None
        standing = trials.standing(tx, state)
    return decide(RULES, state, evidence.look(RULES, state, standing, now), now)


@pytest.mark.parametrize("asks", ["the challenger is worse", "cut off"])
def test_harm_ends_it_at_once(sqlite_store: Store, asks: str) -> None:
    with sqlite_store.write() as tx:
        rollouts.put(tx, CANARY)
    with sqlite_store.write() as tx:
        rollouts.put(tx, replace(BURNS, asked=() if asks == "the challenger is worse" else ("harm",)))
    _answers(sqlite_store, BURNS, SPREAD_S + 1)
    ended = _decided(sqlite_store, HOUR)
    assert ended.action is Action.ABORT and asks in ended.reason


def test_nobody_of_it_counts_towards_a_gain(sqlite_store: Store) -> None:
    with sqlite_store.write() as tx:
        rollouts.put(tx, CANARY)
    with sqlite_store.write() as tx:
        rollouts.put(tx, BURNS)
    _answers(sqlite_store, BURNS, SPREAD_S + 1)
    _decided(sqlite_store, HOUR)
    with sqlite_store.write() as tx:
        rollouts.put(tx, DECIDES)
    waits = _decided(sqlite_store, 300 * HOUR)
    assert waits.action is Action.HOLD and "0 up of 0 users against the champion's 0 of 0" in waits.reason


def test_it_ends_by_its_hours_alone_and_takes_them_from_the_deciding_stage() -> None:
    look = replace(evidence.look(RULES, BURNS, Standing("r1", 1), 0.0), exposed_challenger=10**6)
    waits = decide(RULES, BURNS, look, 167 * HOUR)
    assert waits.action is Action.HOLD and waits.reason.startswith("stage 'burn-in' waits for 168 hours")
    assert decide(RULES, BURNS, look, 168 * HOUR).action is Action.ADVANCE
    assert hours_of(RULES, DECIDES) == 336 - 168
    assert not any("min_hours" in words for words in lacking(RULES, DECIDES, look, 0.0)), "48 hours are long over"
    late = decide(RULES, DECIDES, look, 336 * HOUR)
    assert late.action is Action.ABORT and "no promotion within 336 hours (max_hours)" in late.reason


def test_a_test_from_before_it_was_a_stage_waits_as_it_began(sqlite_store: Store) -> None:
    of_old = replace(DECIDES, stage=1, stage_started_at=0.0, rules=CONFIG.model_dump(mode="json", exclude={"staff"}))
    with sqlite_store.write() as tx:
        rollouts.put(tx, of_old)
    _answers(sqlite_store, of_old, SPREAD_S + 1)
    with sqlite_store.write() as tx:
        count(tx, CONFIG, RolloutKind.TEST, 30 * HOUR)
    with sqlite_store.read() as tx:
        assert trials.standing(tx, of_old).champion.users == 0
    assert hours_of(CONFIG, of_old) == 336
