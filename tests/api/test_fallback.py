"""A champion that a replica cannot load: who answers in its place, what is told of it, and that no arm counts it."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from ray.exceptions import RayActorError

from kto_ray.records.adapters import AdapterVersion
from kto_ray.records.completions import Arm
from kto_ray.records.replicas import LoadFault, ReplicaReport
from kto_ray.records.rollouts import RolloutState, RolloutStatus
from kto_ray.store import adapters, completions, replicas, rollouts
from tests.api.conftest import Api

BASE, OLD, BEST, NEW = "policy@base", "policy@v1-aaaaaa", "policy@v2-bbbbbb", "policy@v3-cccccc"
LACKS = {BEST: LoadFault("its file has changed", refused=True, tries=4, age_s=9.0)}
HOLDS_ALL = ReplicaReport("r1", "node", 1, (OLD, BEST, NEW))
LACKS_BEST = ReplicaReport("r2", "node", 2, (OLD, NEW), errors=LACKS)


@pytest.fixture(autouse=True)
def test_of(api: Api) -> None:
    """An A/B test between BEST and NEW, half of the users each."""
    test = RolloutState("r-1", BEST, NEW, "salt", 1, 0.5, RolloutStatus.RUNNING, 1.0, 1.0)
    with api.store.write() as tx:
        for alias, name in (("champion", BEST), ("challenger", NEW), ("previous", OLD)):
            adapters.set_alias(tx, alias, name, 1.0)
        rollouts.put(tx, test)


def live(api: Api, *reports: ReplicaReport) -> None:
    with api.store.write() as tx:
        for report in reports:
            replicas.report(tx, report, 15.0)
    api.door.viewer.refresh()


def answered(api: Api, **body: Any) -> tuple[str, Arm, str | None]:
    """The version that the answer names, and the arm and the test of its row."""
    told = api.chat(**body).json()
    with api.store.read() as tx:
        row = completions.get(tx, told["id"])
    assert row is not None and row.adapter == told["system_fingerprint"] == api.engine.asked[-1][1]
    return row.adapter, row.arm, row.rollout


def users_of(api: Api) -> dict[str, set[tuple[Arm, str | None]]]:
    """adapter -> the arms and tests of 20 users' answers."""
    found: dict[str, set[tuple[Arm, str | None]]] = {}
    for number in range(20):
        adapter, arm, test = answered(api, user=f"user-{number}")
        found.setdefault(adapter, set()).add((arm, test))
    return found


def test_while_all_hold_it_the_champion_answers_and_both_arms_count(api: Api) -> None:
    live(api, HOLDS_ALL)
    assert users_of(api) == {BEST: {(Arm.CHAMPION, "r-1")}, NEW: {(Arm.CHALLENGER, "r-1")}}


@pytest.mark.parametrize("others", [(), (HOLDS_ALL,)])
def test_the_previous_champion_answers_for_one_that_a_replica_cannot_load_and_no_arm_counts(
    api: Api, others: tuple[ReplicaReport, ...], caplog: pytest.LogCaptureFixture
) -> None:
    live(api, LACKS_BEST, *others)
    assert users_of(api) == {OLD: {(Arm.PINNED, None)}, NEW: {(Arm.PINNED, None)}}
    assert answered(api) == (OLD, Arm.PINNED, None)
    assert answered(api, model="policy@champion") == (OLD, Arm.PINNED, None)
    assert api.chat(model=BEST).status_code == 404, "who asks for that very version gets no other"
    loud = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert loud == [
        f"{OLD} answers in place of the champion {BEST}, which a replica cannot load: its file has changed"
    ], "once, not at each look"
    told = api.client.get("/readyz")
    assert told.status_code == 200
    assert (told.json()["champion"], told.json()["answers"]) == (BEST, OLD)
    assert told.json()["replicas"][-1]["errors"][BEST] == {
        "reason": "its file has changed",
        "refused": True,
        "tries": 4,
        "age_s": 9.0,
    }
    scraped = api.client.get("/metrics").text
    assert "kto_ray_champion_replaced 1.0" in scraped and "kto_ray_replicas_failing 1.0" in scraped
    live(api, ReplicaReport("r2", "node", 2, (OLD, BEST, NEW)))
    assert set(users_of(api)) == {BEST, NEW}
    assert "kto_ray_champion_replaced 0.0" in api.client.get("/metrics").text


@pytest.mark.parametrize("stream", [False, True])
def test_what_waited_for_a_replica_that_then_cannot_load_the_champion_is_answered_by_who_answers_now(
    api: Api, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both replicas died, and what comes in their place lacks the champion."""
    live(api, HOLDS_ALL)
    answers, asked = api.door.generate, list[str]()

    async def generate(body: Mapping[str, Any], adapter: str, everywhere: bool) -> AsyncIterator[str]:
        asked.append(adapter)
        if len(asked) == 1:
            raise RayActorError
        if adapter == BEST:
            live(api, LACKS_BEST)
            yield json.dumps({"error": {"message": f"{BEST} cannot be loaded now", "param": "model", "code": 503}})
            return
        async for event in answers(body, adapter, everywhere):
            yield event

    monkeypatch.setattr(api.door, "generate", generate)
    told = api.chat(stream=stream)
    assert told.status_code == 200 and asked == [BEST, BEST, OLD] and OLD in told.text and BEST not in told.text
    with api.store.read() as tx:
        row = completions.get(tx, told.headers["x-kto-completion-id"])
    assert row is not None and (row.adapter, row.arm, row.rollout) == (OLD, Arm.PINNED, None)
    live(api, HOLDS_ALL, ReplicaReport("r2", "node", 2, (OLD, BEST, NEW)))
    asked.clear()
    assert api.chat(model=BEST, stream=stream).status_code == 404 and asked == [BEST, BEST], "no other for that version"


def test_the_base_answers_where_not_all_hold_the_previous_champion(api: Api) -> None:
    live(api, LACKS_BEST, ReplicaReport("r3", "node", 3, (NEW,), errors=LACKS))
    assert users_of(api) == {BASE: {(Arm.PINNED, None)}, NEW: {(Arm.PINNED, None)}}
    assert api.client.get("/readyz").json()["ready"]


def test_who_was_left_for_the_champion_does_not_answer_in_its_place(api: Api) -> None:
    """After a rollback, or the holdback's alarm, the previous champion is the one that was left."""
    with api.store.write() as tx:
        for number, name in enumerate((OLD, BEST), start=1):
            adapters.insert(tx, AdapterVersion(name, number, 1.0, "u", "0" * 64, None, None, BASE, 8))
    live(api, LACKS_BEST)
    assert answered(api, user="ann", model="policy@champion")[0] == OLD, "it was promoted over that one"
    with api.store.write() as tx:
        adapters.set_alias(tx, "champion", OLD, 2.0)
        adapters.set_alias(tx, "previous", BEST, 2.0)
    fault = {OLD: LoadFault("its file has changed", refused=True)}
    live(api, ReplicaReport("r2", "node", 2, (BEST, NEW), errors=fault))
    assert answered(api, user="ann", model="policy@champion")[0] == BASE
    told = api.client.get("/readyz").json()
    assert (told["ready"], told["champion"], told["answers"]) == (True, OLD, BASE)


def test_a_replica_that_says_nothing_of_the_champion_is_asked_for_it(api: Api) -> None:
    """It loads what it is asked for; and of no replica at all nothing is known, as after an outage of the store."""
    live(api)
    assert answered(api)[0] == BEST
    live(api, ReplicaReport("r2", "node", 2, (OLD, NEW)))
    assert answered(api)[0] == BEST
    assert api.client.get("/readyz").status_code == 503
