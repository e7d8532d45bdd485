"""What operators ask comes to all that it means in one move, and only for what stood when they asked."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from kto_ray.config import Config
from kto_ray.loop.moves import Change, Point
from kto_ray.loop.operators import obey
from kto_ray.loop.seen import Seen, Trial
from kto_ray.loop.step import Loop
from kto_ray.records.replicas import ReplicaReport
from kto_ray.records.requests import NONE, Act, Done, Refused, Request
from kto_ray.records.rollouts import BudgetReset, RolloutKind, RolloutState, RolloutStatus
from kto_ray.records.rounds import Ended, Loading, Outcome, Round, Stage
from kto_ray.records.trials import Standing
from kto_ray.store import Store, adapters, replicas, requests, rollouts, rounds
from kto_ray.store.schema import replicas as rows
from tests.support.loop import V1, Jobs, hold, labels, until

TEST = RolloutState("rollout-1-n", "policy@base", V1, "salt", 1, 0.5, RolloutStatus.RUNNING, 1.0, 2.0, level=0.005)


def asked_in_one_tick(loop: Loop, store: Store, *acts: tuple[Act, str | None]) -> list[Any]:
    """The answers to acts of which the second was asked before the first was done."""
    with store.write() as tx:
        asked = [requests.ask(tx, act, time.time(), target, 60.0) for act, target in acts]
    loop.step()
    with store.read() as tx:
        return [requests.answered(tx, request) for request in asked]


def in_its_test(loop: Loop, store: Store) -> None:
    labels(store)
    hold(store, V1)
    until(loop, store, Stage.ROLLOUT)


@pytest.mark.parametrize("then", [(Act.END, "1"), (Act.END, None), (Act.ABORT, None), (Act.ROLLBACK, "policy@base")])
def test_nothing_comes_between_a_promotion_and_its_swap(
    loop: Loop, sqlite_store: Store, jobs: Jobs, then: tuple[Act, str | None]
) -> None:
    in_its_test(loop, sqlite_store)
    promoted, refused = asked_in_one_tick(loop, sqlite_store, (Act.PROMOTE, None), then)
    assert isinstance(promoted, Done) and isinstance(refused, Refused)
    with sqlite_store.read() as tx:
        newest = rounds.newest(tx)
        assert newest is not None and isinstance(newest.state, Ended) and newest.state.outcome is Outcome.PROMOTED
        assert [test.status for test in rollouts.latest(tx, 1)] == [RolloutStatus.PROMOTED]
        assert adapters.aliases(tx, "policy@base") == {"champion": V1, "previous": "policy@base"}
        back = rollouts.live(tx, RolloutKind.HOLDBACK)
        assert back is not None and (back.champion, back.challenger) == (V1, "policy@base")


def test_no_alias_is_pointed_at_what_a_replica_lacks_that_came_in_since_the_look(
    loop: Loop, sqlite_store: Store, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_its_test(loop, sqlite_store)
    looks, newcomer = loop._observe, ReplicaReport("new", "node", 2, ())

    def look(with_job: bool = False) -> Any:
        seen = looks(with_job)
        with sqlite_store.write() as tx:
            replicas.report(tx, newcomer, 15.0)
        return seen

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_observe", look)
        assert asked_in_one_tick(loop, sqlite_store, (Act.PROMOTE, None)) == [None], "answered at a later look"
    with sqlite_store.write() as tx:
        assert adapters.aliases(tx, "policy@base")["champion"] == "policy@base"
        replicas.report(tx, replace(newcomer, held=(V1,)), 15.0)
    loop.step()
    with sqlite_store.read() as tx:
        assert adapters.aliases(tx, "policy@base")["champion"] == V1


def test_no_alias_is_pointed_at_what_a_replica_may_lack_that_an_outage_silenced(
    loop: Loop, sqlite_store: Store, jobs: Jobs
) -> None:
    """Both were silent while the store was away, and the one that holds the challenger is heard of first."""
    in_its_test(loop, sqlite_store)
    lacks = ReplicaReport("other", "node", 2, ())
    with sqlite_store.write() as tx:
        replicas.report(tx, lacks, 15.0)
        ago = {"heartbeat_at": rows.c.heartbeat_at - 30.0, "steady_since": rows.c.steady_since - 60.0}
        tx.execute(rows.update().values(ago))
    hold(sqlite_store, V1)
    assert asked_in_one_tick(loop, sqlite_store, (Act.PROMOTE, None)) == [None], "answered at a later look"
    with sqlite_store.write() as tx:
        assert adapters.aliases(tx, "policy@base")["champion"] == "policy@base"
        replicas.report(tx, lacks, 15.0)
    [_, told] = asked_in_one_tick(loop, sqlite_store, (Act.PROMOTE, None), (Act.PROMOTE, None))
    assert told == Refused(f"not every live replica holds {V1} yet")
    with sqlite_store.read() as tx:
        assert adapters.aliases(tx, "policy@base")["champion"] == "policy@base"


def test_the_base_model_may_follow_a_champion_that_ended_every_replica(loop: Loop, sqlite_store: Store) -> None:
    """Nobody is heard of, and nobody can lack it."""
    with sqlite_store.write() as tx:
        adapters.set_alias(tx, "champion", V1, 1.0)
        adapters.set_alias(tx, "previous", "policy@base", 1.0)
        replicas.report(tx, ReplicaReport("dead", "node", 2, (V1,)), 15.0)
        tx.execute(rows.update().values(heartbeat_at=rows.c.heartbeat_at - 7200.0))
    [told] = asked_in_one_tick(loop, sqlite_store, (Act.ROLLBACK, V1))
    assert told == Done("champion is policy@base again")


def test_a_promotion_may_be_rolled_back_in_the_tick_that_made_it(loop: Loop, sqlite_store: Store, jobs: Jobs) -> None:
    in_its_test(loop, sqlite_store)
    answers = asked_in_one_tick(loop, sqlite_store, (Act.PROMOTE, None), (Act.ROLLBACK, V1))
    assert all(isinstance(answer, Done) for answer in answers)
    with sqlite_store.read() as tx:
        assert adapters.aliases(tx, "policy@base") == {"champion": "policy@base", "previous": V1}
    [again] = asked_in_one_tick(loop, sqlite_store, (Act.ROLLBACK, "policy@base"))
    assert isinstance(again, Refused) and "nothing came before it" in again.words, "who was left does not come back"


def test_who_passed_against_the_champion_that_was_just_left_is_not_approved(
    config: Config, sqlite_store: Store, jobs: Jobs
) -> None:
    """Both are asked before one tick."""
    asking = config.model_copy(update={"loop": config.loop.model_copy(update={"require_approval": True})})
    loop, v0 = Loop(asking, policy=None), "policy@v0-000000"
    with sqlite_store.write() as tx:
        adapters.set_alias(tx, "champion", v0, 1.0)
        adapters.set_alias(tx, "previous", "policy@base", 1.0)
    labels(sqlite_store)
    hold(sqlite_store, v0, V1)
    until(loop, sqlite_store, Stage.APPROVAL)
    left, approved = asked_in_one_tick(loop, sqlite_store, (Act.ROLLBACK, v0), (Act.APPROVE, V1))
    words = f"{V1} passed against {v0}, and the champion is policy@base by now"
    assert isinstance(left, Done) and approved == Refused(f"round 1 ends: inconclusive ({words})")
    with sqlite_store.read() as tx:
        newest = rounds.newest(tx)
        assert newest is not None and isinstance(newest.state, Ended)
        assert (newest.state.outcome, newest.state.reason) == (Outcome.INCONCLUSIVE, words)
        assert adapters.aliases(tx, "policy@base") == {"champion": "policy@base", "previous": v0}
        assert rollouts.live(tx) is None


def test_an_abort_ends_the_round_at_once(loop: Loop, sqlite_store: Store, jobs: Jobs) -> None:
    in_its_test(loop, sqlite_store)
    aborted, refused = asked_in_one_tick(loop, sqlite_store, (Act.ABORT, None), (Act.PROMOTE, None))
    assert isinstance(aborted, Done) and isinstance(refused, Refused)
    with sqlite_store.read() as tx:
        newest = rounds.newest(tx)
        assert newest is not None and isinstance(newest.state, Ended) and newest.state.outcome is Outcome.ABORTED
        assert adapters.aliases(tx, "policy@base") == {"champion": "policy@base"}


@pytest.mark.parametrize("act", [Act.PROMOTE, Act.ABORT])
def test_a_test_without_a_round_is_settled_and_leaves_the_next_candidate_alone(act: Act) -> None:
    holds = ReplicaReport("r", "node", 1, (V1,), 9.0)
    found = Seen(9.0, None, None, 0, 1, {"champion": "policy@base", "challenger": V1}, (holds,), salt="drawn")
    found = replace(found, trial=Trial(TEST, Standing(TEST.id, 1), None))
    move, answer = obey(Config(), found, Request(1, act, TEST.id))
    assert isinstance(move, Change) and isinstance(answer, Done) and move.round is None
    points = [(effect.alias, effect.adapter) for effect in move.effects if isinstance(effect, Point)]
    swap = [("previous", "policy@base"), ("champion", V1)] if act is Act.PROMOTE else []
    assert points == [*swap, ("challenger", None)]
    begun = [effect.id for effect in move.effects if isinstance(effect, RolloutState)]
    assert begun == [TEST.id, *(("holdback-1-n", "base-") if act is Act.PROMOTE else ())]
    loads = Round(7, Loading("s", "policy@v2"), 5.0, 6.0)
    loading = replace(found, round=loads, aliases={"champion": "policy@base", "challenger": "policy@v2"})
    move, _ = obey(Config(), loading, Request(1, act, TEST.id))
    assert isinstance(move, Change) and move.round is None and Point("challenger", None) not in move.effects


def test_an_act_is_not_for_what_begins_after_it_was_asked(
    loop: Loop, sqlite_store: Store, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked between the tick's look at the requests and the move that begins the test."""
    labels(sqlite_store)
    hold(sqlite_store, V1)
    until(loop, sqlite_store, Stage.GATE)
    loop.step()
    asked, act = [], loop._do

    def late(seen: Any, move: Any) -> None:
        with sqlite_store.write() as tx:
            asked.append(requests.ask(tx, Act.PROMOTE, time.time()))
        act(seen, move)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_do", late)
        loop.step()
    loop.step()
    with sqlite_store.read() as tx:
        assert rollouts.live(tx) is not None
        refused = requests.answered(tx, asked[0])
    assert isinstance(refused, Refused)
    assert refused.words.startswith("there was no rollout to promote when it was asked; round 1 is in stage rollout")


def test_an_end_is_not_for_the_round_that_begins_next(loop: Loop, sqlite_store: Store, jobs: Jobs) -> None:
    labels(sqlite_store, 1)
    with sqlite_store.write() as tx:
        begun, ended = (requests.ask(tx, act, time.time()) for act in (Act.RUN, Act.END))
    loop.step()
    with sqlite_store.read() as tx:
        assert requests.answered(tx, begun) == Done("round 1 begins")
        assert requests.answered(tx, ended) == Refused("there was no round in progress when it was asked")
        assert rounds.current(tx) is not None


@pytest.mark.parametrize("act", [Act.PROMOTE, Act.ABORT, Act.PAUSE, Act.RESUME, Act.END])
def test_what_meant_nothing_is_refused_whatever_there_is_now(act: Act) -> None:
    found = Seen(9.0, None, None, 0, 1, {"champion": "policy@base"}, (), trial=Trial(TEST, Standing(TEST.id, 1), None))
    move, answer = obey(Config(), found, Request(1, act, NONE))
    assert move is None and isinstance(answer, Refused) and "when it was asked" in answer.words


def test_a_reset_of_the_budget_is_recorded_and_a_running_test_keeps_its_level(
    loop: Loop, sqlite_store: Store, jobs: Jobs
) -> None:
    in_its_test(loop, sqlite_store)
    with sqlite_store.write() as tx:
        before = rollouts.live(tx)
        assert before is not None
        asked = requests.ask(tx, Act.RESET_BUDGET, time.time(), "another product", 60.0, "ops")
    began = time.time()
    loop.step()
    with sqlite_store.write() as tx:
        answer, last, after = requests.answered(tx, asked), rollouts.last_reset(tx), rollouts.live(tx)
        requests.forget(tx, time.time() + 1, 10)
        assert rollouts.last_reset(tx) == last, "requests go, the record stays"
    kept = f"; rollout {before.id} keeps its level of 0.005, out of the budget of before"
    assert answer == Done(f"the error budget begins anew, by ops: another product{kept}")
    assert last is not None and (last.who, last.why) == ("ops", "another product")
    assert began <= last.at <= time.time()
    assert after is not None and (after.id, after.level) == (before.id, before.level)
    [aborted] = asked_in_one_tick(loop, sqlite_store, (Act.ABORT, None))
    with sqlite_store.read() as tx:
        assert isinstance(aborted, Done) and rollouts.finished(tx) == [], "the new life has spent nothing"
        assert [test.id for test in rollouts.finished(tx, before.id)] == [before.id]


def test_a_reset_without_a_reason_is_none() -> None:
    found = Seen(9.0, None, None, 0, 1, {"champion": "policy@base"}, ())
    for target in (None, ""):
        assert obey(Config(), found, Request(1, Act.RESET_BUDGET, target)) == (
            None,
            Refused("a reset says why, for the record"),
        )
    move, answer = obey(Config(), found, Request(1, Act.RESET_BUDGET, "why not"))
    assert move == Change(None, (BudgetReset(9.0, "operator", "why not"),))
    assert answer == Done("the error budget begins anew, by operator: why not")


def test_who_resumes_after_it_asked_lets_it_go_on(sqlite_store: Store, jobs: Jobs, config: Config) -> None:
    """Over the store: asked once, resumed, and not asked again of the same."""
    hours = {"max_hours": 0.5, "min_hours": 0.0, "settle_hours": 0.0}
    rules = config.rollout.model_copy(update={"ask": ("hours",), **hours})
    loop = Loop(config.model_copy(update={"rollout": rules}), policy=None)
    in_its_test(loop, sqlite_store)
    with sqlite_store.write() as tx:
        test = rollouts.live(tx)
        assert test is not None
        rollouts.put(tx, replace(test, stage=1, weight=0.5, stage_started_at=time.time() - 3600))
    loop.step()
    with sqlite_store.read() as tx:
        asks = rollouts.live(tx)
    assert asks is not None and asks.status is RolloutStatus.PAUSED and asks.asked == ("hours",)
    assert str(asks.reason).startswith("asks for promote, abort or resume: no promotion within 0.5 hours (max_hours)")
    [answer] = asked_in_one_tick(loop, sqlite_store, (Act.RESUME, None))
    loop.step()
    with sqlite_store.read() as tx:
        goes_on = rollouts.live(tx)
    assert isinstance(answer, Done) and goes_on is not None and goes_on.status is RolloutStatus.RUNNING
