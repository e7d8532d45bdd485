"""Which arm answers whom, over HTTP: a conversation stays with its version, who is held back with the previous one."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict, replace
from typing import Any

import pytest
import sqlalchemy as sa

from kto_ray.config.deciding import RolloutSection, RolloutStage
from kto_ray.records.completions import Arm, Completion
from kto_ray.records.replicas import ReplicaReport
from kto_ray.records.rollouts import ArmCount, RolloutKind, RolloutState, RolloutStatus
from kto_ray.records.users import unit_interval
from kto_ray.serve.gateway import conversations
from kto_ray.stats.strata import Strata, fold
from kto_ray.store import adapters, completions, replicas, rollouts, trials
from kto_ray.store.schema import trials as rows
from tests.api.conftest import Api

OLD, BEST, NEW = "policy@v1-aaaaaa", "policy@v2-bbbbbb", "policy@v3-cccccc"
RULES = RolloutSection().model_dump(mode="json")
CANARY = RolloutState("r-1", BEST, NEW, "salt", 0, 0.1, RolloutStatus.RUNNING, 1.0, 1.0, rules=RULES)
HOLDBACK = RolloutState("h-1", BEST, OLD, "other", 0, 0.3, RolloutStatus.RUNNING, 1.0, 1.0, kind=RolloutKind.HOLDBACK)


@pytest.fixture(autouse=True)
def versions(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    with api.store.write() as tx:
        for alias, name in (("champion", BEST), ("challenger", NEW), ("previous", OLD)):
            adapters.set_alias(tx, alias, name, 1.0)
        replicas.report(tx, ReplicaReport("r1", "node", 1, (OLD, BEST, NEW)), 15.0)
    api.door.viewer.refresh()
    monkeypatch.setattr(conversations, "WAIT_S", 20.0)  # a busy machine is no store that is away


def stands(api: Api, *states: RolloutState) -> None:
    with api.store.write() as tx:
        for state in states:
            rollouts.put(tx, state)
    api.door.viewer.refresh()


def asked(api: Api, user: str, chat: str | None = None, message: str = "m") -> Completion:
    headers = {} if chat is None else {"X-Kto-Chat-Id": chat, "X-Kto-Message-Id": message}
    told = api.client.post(
        "/v1/chat/completions",
        json={"model": "policy", "messages": [{"role": "user", "content": "Hi"}], "user": user},
        headers=headers,
    ).json()
    with api.store.read() as tx:
        row = completions.get(tx, told["id"])
    assert row is not None and row.adapter == told["system_fingerprint"]
    return row


def whose(low: float, high: float) -> str:
    """A user whose place among the arms lies between."""
    names = (f"user-{i}" for i in range(9999))
    return next(name for name in names if low <= unit_interval("salt", name) < high)


def test_a_growing_weight_moves_users_between_conversations_and_not_within_one(api: Api) -> None:
    moves, stays = whose(0.1, 0.5), whose(0.5, 1.0)
    stands(api, CANARY)
    assert asked(api, moves, "chat-1", "m1").adapter == BEST
    began = asked(api, moves, "chat-1", "m2").created_at
    stands(api, replace(CANARY, stage=1, weight=0.5, stage_started_at=began + 0.001))
    within = asked(api, moves, "chat-1", "m3")
    assert (within.adapter, within.arm, within.rollout) == (BEST, Arm.CHAMPION, None)
    assert asked(api, moves, "chat-2").adapter == NEW and asked(api, moves).adapter == NEW
    assert asked(api, moves, "chat-2", "m2").adapter == NEW, "that one began in this stage"
    assert asked(api, stays, "chat-1").adapter == BEST
    other = whose(0.0, 0.1)
    assert asked(api, other, "chat-1").adapter == NEW, "of the challenger from the start, whoever names the same chat"


def test_who_is_held_back_stays_on_the_previous_champion(api: Api) -> None:
    stands(api, CANARY, HOLDBACK)
    users = [f"user-{i}" for i in range(30)]
    rows = {user: asked(api, user) for user in users}
    for user, row in rows.items():
        back = unit_interval("other", user) < 0.3
        assert (row.arm is Arm.HOLDBACK) == back and (row.adapter == OLD) == back
        tested = unit_interval(CANARY.salt, user) < CANARY.weight
        assert row.holdback == (None if tested else "h-1"), "in either arm, whom else the champion answers"
        assert row.rollout == (None if back else "r-1")
    assert {row.arm for row in rows.values()} == {Arm.CHAMPION, Arm.CHALLENGER, Arm.HOLDBACK}
    page = api.client.get("/v1/rollout").json()
    assert (page["rollout"]["id"], page["holdback"]["id"], page["holdback"]["stage_name"]) == ("r-1", "h-1", "week 1")
    assert "salt" not in page["holdback"] and [test["id"] for test in page["rollouts"]] == ["r-1"]


def later(state: RolloutState, **changes: Any) -> RolloutState:
    """The state in a stage that begins after all that was answered."""
    time.sleep(0.01)
    return replace(state, stage=state.stage + 1, stage_started_at=time.time(), **changes)


def in_trials(api: Api, state: RolloutState) -> set[str]:
    with api.store.write() as tx:
        trials.advance(tx, state, trials.Rules(0.0, new_users=True, slow_s=10.0), 1e10)
        return set(tx.execute(sa.select(rows.c.user).where(rows.c.stage == state.stage)).scalars())


def test_old_conversations_count_for_no_arm_and_new_ones_for_each(api: Api) -> None:
    users = whose(0.0, 0.1), whose(0.1, 0.5), whose(0.5, 1.0)
    stands(api, CANARY)
    before = [asked(api, user, f"chat-{user}", "m1") for user in users]
    assert [row.rollout for row in before] == ["r-1"] * 3
    decides = later(CANARY, weight=0.5)
    stands(api, decides)
    within = [asked(api, user, f"chat-{user}", "m2") for user in users]
    assert [(row.adapter, row.rollout) for row in within] == [(NEW, None), (BEST, None), (BEST, None)]
    assert in_trials(api, decides) == set()
    fresh = [asked(api, user, "another") for user in users]
    assert [(row.adapter, row.rollout) for row in fresh] == [(NEW, "r-1"), (NEW, "r-1"), (BEST, "r-1")]
    assert in_trials(api, decides) == set(users)


def test_a_conversation_keeps_its_version_through_all_stages(api: Api) -> None:
    stages = [RolloutStage(name=name, weight=weight) for name, weight in (("a", 0.1), ("b", 0.3))]
    stages.append(RolloutStage(name="c", weight=0.5, decides=True))
    first, second = whose(0.0, 0.1), whose(0.1, 0.3)
    for user in (first, second):
        assert asked(api, user, "old", "m1").adapter == BEST
    time.sleep(0.01)
    rules = RolloutSection(stages=tuple(stages)).model_dump(mode="json")
    state = replace(CANARY, started_at=time.time(), stage_started_at=time.time(), rules=rules)
    stands(api, state)
    for user in (first, second):
        assert (asked(api, user, "old", "m2").adapter, asked(api, user, "old", "m3").rollout) == (BEST, None)
    assert asked(api, second, "begun").adapter == BEST
    for weight in (0.3, 0.5):
        state = later(state, weight=weight)
        stands(api, state)
        told = [(asked(api, second, chat).adapter, asked(api, second, chat).rollout) for chat in ("old", "begun")]
        assert told == [(BEST, None)] * 2
    stands(api, replace(state, status=RolloutStatus.ABORTED))
    assert asked(api, first, "old").adapter == BEST
    assert asked(api, first, "fresh").adapter == BEST


def test_a_holdback_begins_and_is_redrawn_between_conversations(api: Api) -> None:
    back = next(name for i in range(999) if unit_interval("other", name := f"user-{i}") < 0.3)
    free = next(name for i in range(999) if unit_interval("other", name := f"user-{i}") >= 0.3)
    assert asked(api, back, "old").adapter == BEST
    time.sleep(0.01)
    week = replace(HOLDBACK, stage_started_at=time.time())
    stands(api, week)
    row = asked(api, back, "old", "m2")
    assert (row.adapter, row.arm, row.holdback) == (BEST, Arm.CHAMPION, None)
    row = asked(api, free, "old", "m1")
    assert (row.adapter, row.holdback) == (BEST, "h-1"), "another user's, which began in this week"
    assert (asked(api, back, "new").adapter, asked(api, back, "new", "m2").holdback) == (OLD, "h-1")
    salt = next(salt for i in range(99) if unit_interval(salt := f"salt-{i}", back) >= 0.3)
    stands(api, later(week, salt=salt))
    row = asked(api, back, "new", "m3")
    assert (row.adapter, row.arm, row.holdback) == (OLD, Arm.HOLDBACK, None)
    row = asked(api, back, "newest")
    assert (row.adapter, row.arm, row.holdback) == (BEST, Arm.CHAMPION, "h-1")


def test_a_conversation_of_a_time_without_the_challenger_counts_for_no_arm(api: Api) -> None:
    stands(api, CANARY)
    users = whose(0.0, 0.1), whose(0.1, 1.0)
    api.holding(BEST, OLD)  # a second replica
    assert [asked(api, user, "chat").rollout for user in users] == [None, None]
    with api.store.write() as tx:
        replicas.report(tx, ReplicaReport("r", "node", 1, (OLD, BEST, NEW)), 15.0)
    api.door.viewer.refresh()
    told = [asked(api, user, "chat", "m2") for user in users]
    assert [(row.adapter, row.rollout) for row in told] == [(BEST, None)] * 2
    assert [asked(api, user, "next").rollout for user in users] == ["r-1"] * 2


def test_only_what_may_go_on_is_looked_up_and_once(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up: list[str] = []
    real = completions.conversation_of

    def look(tx: Any, user: str, ref: Any) -> Any:
        looked_up.append(ref.conversation)
        return real(tx, user, ref)

    monkeypatch.setattr(completions, "conversation_of", look)
    user = whose(0.0, 0.1)
    asked(api, user, "chat")
    assert looked_up == [], "no test lives"
    stands(api, CANARY)
    asked(api, user)
    api.client.post("/v1/chat/completions", json={"model": NEW, "messages": [{"role": "user", "content": "Hi"}]})
    assert looked_up == []
    for _ in range(3):
        assert asked(api, user, "new").rollout == "r-1"
    assert looked_up == ["new"]
    monkeypatch.setattr(conversations, "KEPT", 1)
    for chat in ("newer", "newer", "new"):
        assert (row := asked(api, user, chat)).rollout == "r-1" and row.adapter == NEW
    assert looked_up == ["new", "newer", "new"], "the newest are kept"


def test_a_store_that_is_slow_to_tell_costs_the_count_and_no_answer(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    arms = {}

    async def never(_: object) -> None:
        await asyncio.Event().wait()

    stands(api, CANARY, HOLDBACK)
    with monkeypatch.context() as slow:
        slow.setattr(conversations, "WAIT_S", 0.02)
        slow.setattr(api.door.conversations, "_read", never)
        for user in (f"user-{i}" for i in range(30)):
            row = asked(api, user, "slow")
            assert (row.rollout, row.holdback) == (None, None)
            arms[row.arm] = row.adapter, user
    assert {arm: adapter for arm, (adapter, _) in arms.items()} == {
        Arm.CHAMPION: BEST,
        Arm.CHALLENGER: NEW,
        Arm.HOLDBACK: OLD,
    }
    for adapter, user in arms.values():
        row = asked(api, user, "slow", "m2")
        assert (row.adapter, row.rollout, row.holdback) == (adapter, None, None), "nor does what follows"


FOR_EVER = RolloutState(
    "b-1", "policy@champion", "policy@base", "third", 0, 0.2, RolloutStatus.RUNNING, 1.0, 1.0, kind=RolloutKind.BASE
)
FOR_EVER = replace(FOR_EVER, watch=asdict(Strata()))


def test_who_is_on_the_base_is_in_no_test_and_the_page_says_what_the_loop_gains(api: Api) -> None:
    stands(api, replace(CANARY, weight=0.5), HOLDBACK, FOR_EVER)
    arms = set()
    for user in (f"user-{i}" for i in range(100)):
        row = asked(api, user, "chat")
        there = unit_interval("third", user) < 0.2
        assert ((row.adapter, row.arm) == ("policy@base", Arm.HOLDBACK)) == there
        assert (row.holdback in ("b-1", None) and row.rollout is None) if there else row.adapter != "policy@base"
        assert asked(api, user, "chat", "m2").holdback == row.holdback, "a conversation goes on with its version"
        arms.add((row.arm, row.holdback))
    assert {(Arm.HOLDBACK, "b-1"), (Arm.CHAMPION, "b-1"), (Arm.HOLDBACK, "h-1"), (Arm.CHAMPION, "h-1")} <= arms
    for model in ("policy@champion", "policy@base", NEW):
        body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "user": "user-1"}
        told = api.client.post("/v1/chat/completions", json=body).json()
        with api.store.read() as tx:
            named = completions.get(tx, told["id"])
        assert named is not None and (named.arm, named.holdback, named.rollout) == (Arm.PINNED, None, None)
    gain = api.client.get("/v1/rollout").json()["loop"]
    assert (gain["weeks"], gain["gain"], gain["interval"], gain["weight"]) == (0, None, [-1.0, 1.0], 0.2)
    assert "kto_ray_loop_gain_low -1.0" in api.client.get("/metrics").text
    sums = fold(Strata(), ArmCount(900, 720.0), ArmCount(100, 50.0))
    stands(api, replace(FOR_EVER, stage=1, watch=asdict(sums)))
    gain = api.client.get("/v1/rollout").json()["loop"]
    assert (gain["weeks"], gain["users_champion"], gain["users_base"]) == (1, 900, 100)
    assert gain["gain"] == pytest.approx(0.3) and gain["interval"][0] < 0.3 < gain["interval"][1]
    words = "20.0% of users stay on policy@base, drawn anew each week, but within a test: the whole loop's gain over it"
    assert gain["in_words"].startswith(f"{words}, whatever was champion, is +0.300 (")
    assert "kto_ray_loop_gain 0.3" in api.client.get("/metrics").text and "third" not in str(gain)


def test_a_champion_of_the_base_has_nobody_to_be_compared_with(api: Api) -> None:
    with api.store.write() as tx:
        adapters.set_alias(tx, "champion", "policy@base", 2.0)
    stands(api, FOR_EVER)
    row = asked(api, next(name for i in range(99) if unit_interval("third", name := f"user-{i}") < 0.2))
    assert (row.adapter, row.arm, row.holdback) == ("policy@base", Arm.CHAMPION, None)


def test_staff_get_the_challenger_within_a_conversation_too_and_count_nowhere(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    stands(api, CANARY, HOLDBACK, FOR_EVER)
    user = next(name for i in range(99) if unit_interval("salt", name := f"u-{i}") > 0.1)
    before = asked(api, user, "chat").adapter
    assert before != NEW
    config = api.config.model_copy(update={"rollout": RolloutSection(staff={user: "challenger"})})
    monkeypatch.setattr(api.door.viewer, "_config", config)
    api.door.viewer.refresh()
    for chat in ("chat", "other"):
        row = asked(api, user, chat, "m2")
        assert (row.adapter, row.arm, row.rollout, row.holdback) == (NEW, Arm.PINNED, None, None)
    stands(api, replace(CANARY, status=RolloutStatus.ABORTED))
    with api.store.write() as tx:
        adapters.set_alias(tx, "challenger", None, 3.0)
    api.door.viewer.refresh()
    row = asked(api, user, "chat", "m3")
    assert (row.adapter, row.arm) == (BEST, Arm.PINNED), "no challenger, and no failed request"
