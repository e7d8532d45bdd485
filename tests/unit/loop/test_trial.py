"""How a test in progress is counted, and what the budget of the loop's life allows the next one."""

from __future__ import annotations

import pytest

from kto_ray.config.deciding import RolloutSection
from kto_ray.loop.trial import SPREAD_S, accepted, count, level_of
from kto_ray.records.completions import Arm
from kto_ray.records.requests import Act
from kto_ray.records.rollouts import BudgetReset, RolloutKind, RolloutState
from kto_ray.records.users import unit_interval
from kto_ray.rollout import machine
from kto_ray.store import Store, completions, rollouts, trials
from tests.support.rows import completion

HOUR = 3600.0


def test_an_operators_promotion_gives_no_level_back(sqlite_store: Store) -> None:
    section, levels = RolloutSection(), []
    for i in range(5):
        with sqlite_store.write() as tx:
            levels.append(level_of(tx, section))
            begun = machine.start(section, "policy@base", f"policy@v{i}", f"r{i}", "salt", levels[-1], float(i))
            rollouts.put(tx, begun)
            assert level_of(tx, section) == levels[-1], "what goes on is not spent yet"
            rollouts.put(tx, machine.apply(begun, Act.PROMOTE, i + 0.5))
    assert levels == pytest.approx([0.005 * 0.95**i for i in range(5)])


def test_a_reset_gives_the_next_test_the_first_level_whatever_the_clocks_say(store: Store) -> None:
    """What goes on meanwhile keeps its level, and costs the life that it began in, which a later reset leaves alone."""
    section, levels = RolloutSection(), []

    def begin(name: str, at: float) -> RolloutState:
        with store.write() as tx:
            levels.append(level_of(tx, section))
            begun = machine.start(section, "policy@base", "policy@v1", name, "salt", levels[-1], at)
            rollouts.put(tx, begun)
        return begun

    def end(state: RolloutState) -> None:
        with store.write() as tx:
            rollouts.put(tx, machine.apply(state, Act.ABORT, state.started_at + 1))

    end(begin("r1", 1.0))
    goes_on = begin("r2", 3.0)
    with store.write() as tx:
        rollouts.reset_budget(tx, BudgetReset(9.0, "ops", "another product"))
        assert rollouts.get(tx, "r2") == goes_on
    end(goes_on)
    end(begin("r3", 5.0))  # by the clock of another machine, before the reset
    begin("r4", 7.0)
    assert levels == pytest.approx([0.005, 0.005 * 0.95, 0.005, 0.005 * 0.95])
    with store.write() as tx:
        rollouts.reset_budget(tx, BudgetReset(10.0, "ops", "again"))
        lives = [[one.id for one in rollouts.finished(tx, of)] for of in ("r1", "r2", "r3", "r4", None)]
        assert lives == [["r1", "r2"], ["r1", "r2"], ["r3"], ["r3"], []]
        assert rollouts.last_reset(tx) == BudgetReset(10.0, "ops", "again")


def test_users_are_watched_for_the_settling_time_and_in_a_canary_for_a_quarter_of_it(sqlite_store: Store) -> None:
    section = RolloutSection(new_users=True, long_tokens=1)
    canary = machine.start(section, "policy@base", "policy@v1", "r1", "salt", 0.005, 1.0)
    decides = machine.advance(section, canary, 2.0)
    for state, hours in ((canary, section.stages[0].hours / 4), (decides, section.settle_hours)):
        came = state.stage_started_at + SPREAD_S
        with sqlite_store.write() as tx:
            rollouts.put(tx, state)
            arm = Arm.CHALLENGER if unit_interval("salt", "ann") < state.weight else Arm.CHAMPION
            completions.insert(tx, completion(f"c{state.stage}", arm=arm, rollout="r1", created_at=came))
            count(tx, section, RolloutKind.TEST, came)
        with sqlite_store.read() as tx:
            [part] = trials.history(tx, "r1", state.stage)
        assert part.react_by == pytest.approx(came + hours * HOUR) and part.faults == ("long",)


def test_the_last_answer_to_a_test_that_asked_holds_for_the_next(store: Store) -> None:
    """Yes, by a test that was resumed; nobody's, and no, by those that ended before they began."""
    section = RolloutSection()

    def begins(name: str, at: float) -> RolloutState:
        return machine.start(section, "policy@base", "policy@v1", name, "salt", 0.005, at)

    def ended(act: Act | None, name: str, at: float, detectable: float | None) -> float | None:
        state = begins(name, at)
        if detectable is not None:
            state = machine.ask_first(state, "few judge", at, detectable)
        with store.write() as tx:
            rollouts.put(tx, state)
            if act is not None:
                state = machine.apply(state, act, at + 1)
                rollouts.put(tx, state)
            rollouts.put(tx, machine.apply(state, Act.ABORT, at + 2))
            return accepted(tx)

    assert ended(None, "enough", 1.0, None) is None
    assert ended(Act.RESUME, "yes", 10.0, 0.25) == 0.25
    assert ended(None, "one like it", 20.0, None) == 0.25
    assert ended(None, "no", 30.0, 0.4) is None
    assert ended(Act.RESUME, "yes again", 40.0, 0.4) == 0.4
