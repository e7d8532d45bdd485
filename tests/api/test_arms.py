"""Which arm answers whom, over HTTP: a conversation stays with its version, who is held back with the previous one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kto_ray.config.deciding import RolloutSection
from kto_ray.records.completions import Arm, Completion
from kto_ray.records.replicas import ReplicaReport
from kto_ray.records.rollouts import RolloutKind, RolloutState, RolloutStatus
from kto_ray.records.users import unit_interval
from kto_ray.store import adapters, completions, replicas, rollouts
from tests.api.conftest import Api

OLD, BEST, NEW = "policy@v1-aaaaaa", "policy@v2-bbbbbb", "policy@v3-cccccc"
RULES = RolloutSection().model_dump(mode="json")
CANARY = RolloutState("r-1", BEST, NEW, "salt", 0, 0.1, RolloutStatus.RUNNING, 1.0, 1.0, rules=RULES)
HOLDBACK = RolloutState("h-1", BEST, OLD, "other", 0, 0.3, RolloutStatus.RUNNING, 1.0, 1.0, kind=RolloutKind.HOLDBACK)


@pytest.fixture(autouse=True)
def versions(api: Api) -> None:
    with api.store.write() as tx:
        for alias, name in (("champion", BEST), ("challenger", NEW), ("previous", OLD)):
            adapters.set_alias(tx, alias, name, 1.0)
        replicas.report(tx, ReplicaReport("r1", "node", 1, (OLD, BEST, NEW)))


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
    assert (within.adapter, within.arm, within.rollout) == (BEST, Arm.CHAMPION, "r-1")
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
        assert row.holdback == (None if row.arm is Arm.CHALLENGER else "h-1")
        assert row.rollout == (None if back else "r-1")
    assert {row.arm for row in rows.values()} == {Arm.CHAMPION, Arm.CHALLENGER, Arm.HOLDBACK}
    page = api.client.get("/v1/rollout").json()
    assert (page["rollout"]["id"], page["holdback"]["id"], page["holdback"]["stage_name"]) == ("r-1", "h-1", "week 1")
    assert "salt" not in page["holdback"] and [test["id"] for test in page["rollouts"]] == ["r-1"]
