"""The loop's pages, its operators, and what a platform asks."""

from __future__ import annotations

import time

import pytest

from kto_ray.records.adapters import AdapterVersion
from kto_ray.records.rollouts import Look, RolloutState, RolloutStatus
from kto_ray.records.rounds import Loading, Outcome, Training
from kto_ray.records.trainings import TrainingRun
from kto_ray.store import adapters, requests, rollouts, rounds, trainings
from tests.api.conftest import Api

V1 = AdapterVersion("policy@v1", 1, 1.0, "uri", "0" * 64, "s", None, "policy@base", 8)


def a_test(api: Api) -> None:
    """A running A/B test of v1, looked at once."""
    now = time.time()
    with api.store.write() as tx:
        adapters.insert(tx, V1)
        adapters.set_alias(tx, "challenger", V1.name, now)
        rollouts.put(tx, RolloutState("r", "policy@base", V1.name, "salt", 1, 0.5, RolloutStatus.RUNNING, now, now))
        rollouts.add_look(tx, Look("r", now, 1, 3, 1, 2, 2, -0.5, 0.75))


def test_the_loop_says_what_it_waits_for(api: Api) -> None:
    told = api.client.get("/v1/loop").json()
    assert told["round"] is None and told["rounds"] == [] and told["completions"] == 0
    assert told["next"] == "a round starts at 200 new labels; 0 so far"


def test_rounds_are_told_with_their_training_and_one_with_every_step(api: Api) -> None:
    steps = ({"step": 1, "loss": 0.5},)
    with api.store.write() as tx:
        begun = rounds.insert(tx, 5.0).to(Training("s"), 6.0)
        trainings.put(tx, TrainingRun("round-1", "s", 6.0, round=1, figures={"step": 1}, history=steps))
        rounds.update(tx, begun)
    told = api.client.get("/v1/loop").json()
    assert told["round"] == told["rounds"][0] and told["round"]["stage"] == "train"
    assert told["round"]["train_metrics"] == {"step": 1} and told["round"]["history"] == []
    assert told["next"].startswith("train the candidate")
    assert api.client.get("/v1/loop/rounds/1").json()["history"] == list(steps)
    with api.store.write() as tx:
        rounds.update(tx, begun.ended(Outcome.FAILED, "train: no", 7.0))
    told = api.client.get("/v1/loop").json()
    assert told["round"] is None
    assert [(r["outcome"], r["reason"], r["snapshot"]) for r in told["rounds"]] == [("failed", "train: no", "s")]


def test_a_test_is_told_with_its_looks(api: Api) -> None:
    assert api.client.get("/v1/rollout").json() == {"rollout": None, "rollouts": [], "holdback": None, "loop": None}
    a_test(api)
    told = api.client.get("/v1/rollout").json()["rollout"]
    assert (told["stage_name"], told["status"], told["interval"]) == ("ab", "running", [-0.5, 0.75])
    assert told["counts"] == {"ab": {"champion": {"users": 3, "up": 1}, "challenger": {"users": 2, "up": 2}}}
    assert told["history"][0]["n_champion"] == 3
    page = api.client.get("/v1/adapters").json()
    assert page["aliases"] == {"champion": "policy@base", "challenger": "policy@v1"}
    assert [(a["name"], a["gate"]) for a in page["adapters"]] == [("policy@v1", None)]


@pytest.mark.usefixtures("controller")
def test_operators_are_answered_by_the_controller(api: Api) -> None:
    nothing = api.client.post("/v1/loop/run")
    assert (nothing.status_code, nothing.json()["error"]["code"]) == (409, "conflict")
    assert "no feedback to learn from" in nothing.json()["error"]["message"]
    assert "no rollout to pause" in api.client.post("/v1/rollout/pause").json()["error"]["message"]
    a_test(api)
    paused = api.client.post("/v1/rollout/pause")
    assert paused.json() == {"action": "pause", "result": "rollout r is paused"}
    assert "not every live replica holds" in api.client.post("/v1/rollout/promote").json()["error"]["message"]
    other = api.client.post("/v1/rollout/abort", params={"rollout": "another"})
    assert other.status_code == 409 and "the one in progress is r" in other.json()["error"]["message"]
    unnamed = api.client.post("/v1/rollout/rollback")
    assert (unnamed.status_code, unnamed.json()["error"]["param"]) == (422, "champion")
    wrong = api.client.post("/v1/rollout/rollback", params={"champion": "policy@v9"})
    assert wrong.status_code == 409 and "policy@base is" in wrong.json()["error"]["message"]
    nothing = api.client.post("/v1/loop/abort")
    assert nothing.status_code == 409 and "no round in progress" in nothing.json()["error"]["message"]
    with api.store.write() as tx:
        now = time.time()
        rounds.update(tx, rounds.insert(tx, now).to(Loading("s", "policy@v1"), now))
    wrong = api.client.post("/v1/loop/abort", params={"round": 7})
    assert wrong.status_code == 409 and "the one in progress is 1" in wrong.json()["error"]["message"]
    done = api.client.post("/v1/loop/abort", params={"round": 1})
    assert done.json() == {"action": "end", "result": "round 1 ended by an operator in stage load"}
    assert api.client.get("/v1/loop").json()["rounds"][0]["outcome"] == "aborted"
    unknown = api.client.post("/v1/rollout/explode")
    assert unknown.status_code == 404 and "promote, abort" in unknown.json()["error"]["message"]


def test_without_a_controller_a_request_is_left_for_it(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kto_ray.serve.gateway.loop.ANSWER_S", 0.2)
    a_test(api)
    left = api.client.post("/v1/rollout/pause")
    assert left.status_code == 202 and "will not if it is away for another" in left.json()["result"]
    with api.store.read() as tx:
        [request] = requests.asked(tx)
    assert (request.target, request.expired) == ("r", False)


def test_ready_is_a_replica_that_holds_the_champion(api: Api) -> None:
    assert api.client.get("/healthz").json()["status"] == "alive"
    assert api.client.get("/readyz").status_code == 503
    api.holding()
    ready = api.client.get("/readyz")
    assert ready.status_code == 200 and ready.json()["champion"] == "policy@base"
    with api.store.write() as tx:
        adapters.set_alias(tx, "champion", "policy@v1", 1.0)
    api.door.viewer.refresh()
    assert api.client.get("/readyz").status_code == 503
    api.holding("policy@v1")
    assert api.client.get("/readyz").json()["replicas"][0]["held"] == ["policy@v1"]


def test_metrics_tell_the_totals(api: Api) -> None:
    name = api.chat(user="ann").json()["id"]
    api.say(name, user="ann")
    a_test(api)
    text = api.client.get("/metrics").text
    for line in ("completions 1.0", "feedback_events 1.0", "labels_new 1.0", "adapters 1.0", "rollout_weight 0.5"):
        assert f"\nkto_ray_{line}\n" in text
