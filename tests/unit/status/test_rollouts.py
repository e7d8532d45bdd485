"""A test's traffic under other rules, as `kto-ray rollout replay` shows it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kto_ray.config import Config, load_config
from kto_ray.records.requests import Act
from kto_ray.records.rollouts import BudgetReset, Look
from kto_ray.records.trials import FAULTS, GUARDS
from kto_ray.rollout import holdback, machine
from kto_ray.status.rollouts import Replay, ShownBudget, page, replayed
from kto_ray.store import Store, rollouts
from kto_ray.store.schema import trials

HOUR = 3600.0


def reasons(store: Store, config: Config, rollout: str | None = None) -> list[str]:
    with store.read() as tx:
        return [stage.reason for stage in replayed(tx, config, rollout).stages]


def test_a_level_is_that_of_the_rules_that_are_tried(sqlite_store: Store) -> None:
    config = Config()
    rules = config.rollout.model_copy(update={"min_users": 1, "min_hours": 0.0, "burn_in_hours": 0.0})
    config = config.model_copy(update={"rollout": rules})
    with sqlite_store.write() as tx:
        first = machine.start(rules, "policy@base", "policy@v1", "r1", "salt", 0.005, 1.0)
        rollouts.put(tx, machine.apply(first, Act.ABORT, 2.0))
        second = machine.start(rules, "policy@base", "policy@v2", "r2", "salt", 0.00475, 3.0)
        rollouts.put(tx, replace(second, stage=1, weight=0.5, stage_started_at=3.0))
        part = {"rollout": "r2", "stage": 1, "known": True, "faults": [], "settled_at": HOUR}
        people = [{"user": f"u{i}", "challenger": i < 4, "place": i + 1, "outcome": 1.0} for i in range(8)]
        tx.execute(
            trials.insert(), [{**part, **each, "first_at": 4.0 + i, "first_seq": i} for i, each in enumerate(people)]
        )
        third = machine.start(rules, "policy@base", "policy@v3", "r3", "salt", 0.0045, 5.0)
        rollouts.put(tx, machine.apply(third, Act.ABORT, 6.0))
    for alpha, odds in ((0.1, 1 / 0.00475), (0.2, 1 / (0.05 * 0.195))):
        tried = config.model_copy(update={"rollout": rules.model_copy(update={"alpha": alpha})})
        assert f"of {odds:.3g} to one" in reasons(sqlite_store, tried, "r2")[1]
    with sqlite_store.write() as tx:
        rollouts.reset_budget(tx, BudgetReset(7.0, "ops", "another product"))
    assert f"of {1 / 0.00475:.3g} to one" in reasons(sqlite_store, config, "r2")[1], "by the life that it was of"


def test_what_is_left_of_the_budget_is_shown(sqlite_store: Store) -> None:
    """By hand: a test costs its level, one of after a promotion half of its; a promotion adds omega times what is
    left, and takes nothing back."""
    config = load_config(None, ())

    def shown() -> ShownBudget:
        with sqlite_store.read() as tx:
            found = page(tx, config).budget
        assert found is not None
        return found

    first = shown()
    assert (first.left, first.level, first.tests, first.promotions) == pytest.approx((0.1, 0.005, 0, 0))
    assert (first.after_promotion, first.after_none) == pytest.approx((2 * 0.05 * 0.095, 0.05 * 0.095))
    begun = machine.start(config.rollout, "policy@base", "policy@v1", "r1", "salt", first.level, 1.0)
    promotes = machine.step(config.rollout, begun, machine.Decision(machine.Action.PROMOTE, "better"), 2.0)
    with sqlite_store.write() as tx:
        rollouts.put(tx, promotes)
    after = shown()
    assert (after.left, after.level) == pytest.approx((0.095, first.after_promotion))
    assert after.in_words.startswith("0.095 of 0.1 (rollout.alpha) is left after 1 tests and 1 promotions by evidence")
    again = machine.start(config.rollout, "policy@v1", "policy@v2", "r2", "salt", after.level, 3.0)
    with sqlite_store.write() as tx:
        rollouts.put(tx, machine.apply(again, Act.PROMOTE, 4.0))
    last = shown()
    assert (last.left, last.promotions) == pytest.approx((0.095 - after.level / 2, 1)), "an operator's gives nothing"
    assert (last.since, last.by, last.why) == (None, None, None)
    with sqlite_store.write() as tx:
        rollouts.reset_budget(tx, BudgetReset(90.0, "ops", "another product"))
    anew = shown()
    assert (anew.left, anew.level, anew.tests, anew.promotions) == (first.left, first.level, 0, 0)
    assert (anew.since, anew.by, anew.why) == (90.0, "ops", "another product")
    assert anew.in_words.endswith("since 1970-01-01 00:01+00:00, when ops began it anew: another product")


@pytest.mark.parametrize(("guards", "end"), [(FAULTS[:4], "promote"), (GUARDS, "asked for again more often")])
def test_a_test_is_replayed_with_the_guards_that_it_had(sqlite_store: Store, guards: tuple[str, ...], end: str) -> None:
    """Of one from before there were more, nobody knows what its users did."""
    changes = {"min_users": 1, "min_hours": 0.0, "max_fault_rise": 0.5, "max_style_rise": 0.5}
    config = Config()
    with sqlite_store.write() as tx:
        rules = config.rollout.model_copy(update={**changes, "guards": guards})
        begun = machine.start(rules, "policy@base", "policy@v1", "r1", "salt", 0.005, 1.0)
        rollouts.put(tx, replace(begun, stage=1, weight=0.5, stage_started_at=3.0))
        part = {"rollout": "r1", "stage": 1, "known": True, "faults": []}
        people = [{"user": f"u{i}", "challenger": i % 2 == 0, "outcome": float(i % 2 == 0)} for i in range(120)]
        times = [{"first_at": 4.0 + i, "first_seq": i, "place": i + 1, "settled_at": HOUR + i} for i in range(120)]
        tx.execute(trials.insert(), [{**part, **one, **at} for one, at in zip(people, times, strict=True)])
    now = config.rollout.model_copy(update={**changes, "guards": GUARDS})
    with sqlite_store.read() as tx:
        stage = replayed(tx, config.model_copy(update={"rollout": now}), "r1").stages[1]
    assert end in f"{stage.action}: {stage.reason}"


@pytest.mark.parametrize(("first_look", "first_answer", "began"), [(100.0, 160.0, 100.0), (160.0, 100.0, 100.0)])
def test_a_stage_that_is_over_is_replayed_from_when_it_began(
    sqlite_store: Store, first_look: float, first_answer: float, began: float
) -> None:
    """A test that waited for a person began later than it was made, and its hours count from then."""
    config = Config()
    begun = machine.start(config.rollout, "policy@base", "policy@v1", "r1", "salt", 0.005, 1.0)
    hours = config.rollout.stages[0].hours
    ends = began + hours * HOUR
    with sqlite_store.write() as tx:
        rollouts.put(tx, replace(begun, stage=1, weight=0.5, stage_started_at=ends + 3.0))
        for at in (first_look, first_look + HOUR):
            rollouts.add_look(tx, Look("r1", at, 0, 1, 1.0, 1, 1.0, -1.0, 1.0))
        one = {"rollout": "r1", "stage": 0, "known": True, "faults": [], "user": "u", "challenger": True}
        tx.execute(trials.insert(), [{**one, "first_at": first_answer, "first_seq": 1, "place": 1}])
    with sqlite_store.read() as tx:
        first, _ = replayed(tx, config, "r1").stages
    assert (first.action, first.at) == (machine.Action.ADVANCE, ends), first.reason


def test_rules_that_a_replay_does_not_take_are_named_and_those_that_are_none_refused(sqlite_store: Store) -> None:
    config = load_config(None, ())
    begun = machine.start(config.rollout, "policy@base", "policy@v1", "r1", "salt", 0.005, 1.0)
    with sqlite_store.write() as tx:
        rollouts.put(tx, begun)

    def tried(*given: str) -> Replay:
        with sqlite_store.read() as tx:
            return replayed(tx, load_config(None, tuple(f"rollout.{one}" for one in given)), "r1")

    assert tried("alpha=0.2", "min_users=7").without_effect == () == tried().notes
    named = tried("guards=[failed]", "max_detectable=1", "settle_hours=2").without_effect
    assert named == ("rollout.settle_hours", "rollout.guards", "rollout.max_detectable")
    assert tried("burn_in_hours=24").without_effect == ("rollout.stages", "rollout.burn_in_hours")
    with pytest.raises(ValueError, match=r"these rules are none .*max_hours is 20, which must exceed"):
        tried("settle_hours=1", "max_hours=20", "min_hours=1")
    with sqlite_store.write() as tx:
        rollouts.put(tx, machine.apply(begun, Act.PAUSE, 2.0))
    assert "as if nobody had" in tried().notes[0]


def test_what_cannot_be_replayed_is_told(sqlite_store: Store) -> None:
    config = Config()
    with pytest.raises(ValueError, match="no rollout yet"):
        reasons(sqlite_store, config)
    back = holdback.start(config.rollout, "policy@v2", "policy@v1", "holdback-2", "salt", 1.0)
    assert back is not None
    with sqlite_store.write() as tx:
        rollouts.put(tx, back)
    for name, words in (("holdback-2", "is a holdback"), ("r9", "'r9' does not exist")):
        with pytest.raises(ValueError, match=words):
            reasons(sqlite_store, config, name)
