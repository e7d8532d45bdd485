"""The loop's pages, its operators, and what a platform asks."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from kto_ray.config import load_config
from kto_ray.records.adapters import AdapterVersion
from kto_ray.records.evaluation import GateDecision
from kto_ray.records.keys import Scope
from kto_ray.records.rollouts import Look, RolloutState, RolloutStatus
from kto_ray.records.rounds import Awaiting, Candidate, Loading, Outcome, Training, Tried
from kto_ray.records.trainings import TrainingRun
from kto_ray.status.rounds import loop as page
from kto_ray.store import adapters, requests, rollouts, rounds, trainings
from tests.api.conftest import Api
from tests.support.opened import bearer, token

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


def test_the_loop_says_that_it_has_done_its_rounds(api: Api) -> None:
    """Whoever began them."""
    config = load_config(None, (f"home={api.config.home}", "loop.max_rounds=1"))
    with api.store.write() as tx:
        assert page(tx, config).next == "a round starts at 200 new labels; 0 so far"
        rounds.update(tx, rounds.insert(tx, 5.0).ended(Outcome.FAILED, "snapshot: no", 7.0))
        told = page(tx, config).next
    words = "no round starts by itself after 1 (loop.max_rounds), and there have been 1; POST /v1/loop/run starts one"
    assert told == words


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


def figures_of(candidate: str) -> dict[str, Any]:
    return {"of": candidate, "steps": 9, "tokens_per_s": 80.0, "train_s": 12.0}


def waits(api: Api) -> None:
    """Of two candidates the first has passed, and waits for a person."""
    now = time.time()
    kto = Candidate("kto", {}, Tried(V1.name, GateDecision.PROMOTE_TO_CANARY, "sane", 0.05))
    apo = Candidate("apo", {"beta": 0.1}, Tried("policy@v2", GateDecision.REJECT, "longer", -0.01))
    with api.store.write() as tx:
        adapters.insert(tx, V1)
        begun = rounds.insert(tx, now, (kto, apo))
        for name in ("kto", "apo"):
            trainings.put(
                tx, TrainingRun(f"round-1-{name}", "s", 6.0, 1, figures=figures_of(name), history=({"step": 1},))
            )
        rounds.update(tx, begun.to(Awaiting("s", V1.name), now))


def test_candidates_are_told_with_what_came_of_each(api: Api) -> None:
    waits(api)
    told = api.client.get("/v1/loop").json()["round"]
    assert (told["stage"], told["adapter"], told["train_metrics"]) == ("approval", V1.name, figures_of("kto"))
    assert told["candidates"] == [
        {
            "name": "kto",
            "kto": {},
            "adapter": V1.name,
            "decision": "promote-to-canary",
            "reason": "sane",
            "auc_gain": 0.05,
            "train_metrics": figures_of("kto"),
        },
        {
            "name": "apo",
            "kto": {"beta": 0.1},
            "adapter": "policy@v2",
            "decision": "reject",
            "reason": "longer",
            "auc_gain": -0.01,
            "train_metrics": figures_of("apo"),
        },
    ]
    assert "\nkto_ray_approval_waits 1.0\n" in api.client.get("/metrics").text
    one = api.client.get("/v1/loop/rounds/1").json()
    assert one["history"] == [{"step": 1}] and one["candidates"] == told["candidates"]


@pytest.mark.usefixtures("controller")
def test_a_candidate_that_waits_is_approved_or_rejected_by_its_name(api: Api) -> None:
    for act in ("approve", "reject"):
        nobody = api.client.post(f"/v1/rollout/{act}")
        assert nobody.status_code == 409
        assert f"there was no candidate to {act} when it was asked" in nobody.json()["error"]["message"]
    waits(api)
    told = api.client.get("/v1/loop").json()["next"]
    assert told.startswith("policy@v1 has passed the gate and waits for a person: kto-ray rollout approve")
    other = api.client.post("/v1/rollout/approve", params={"candidate": "policy@v9"})
    assert other.status_code == 409 and "the candidate that waits is policy@v1" in other.json()["error"]["message"]
    api.holding("policy@v1")
    done = api.client.post("/v1/rollout/approve", params={"candidate": V1.name})
    assert done.json() == {"action": "approve", "result": "the A/B test of policy@v1 begins"}
    told = api.client.get("/v1/rollout").json()["rollout"]
    assert (told["challenger"], told["status"]) == (V1.name, "running")
    again = api.client.post("/v1/rollout/reject", params={"candidate": V1.name})
    assert again.status_code == 409 and "there is no candidate to reject" in again.json()["error"]["message"]


@pytest.mark.usefixtures("controller")
def test_a_rejected_candidate_is_wanted_by_nobody(api: Api) -> None:
    waits(api)
    with api.store.write() as tx:
        adapters.set_alias(tx, "challenger", V1.name, 1.0)
    assert api.client.post("/v1/rollout/reject").json()["result"] == "round 1 ends: policy@v1 is rejected"
    ended = api.client.get("/v1/loop").json()["rounds"][0]
    assert (ended["outcome"], ended["reason"]) == ("rejected", "policy@v1 was rejected by an operator")
    with api.store.read() as tx:
        assert adapters.desired(tx) == [] and rollouts.latest(tx, 1) == []


def test_a_test_is_told_with_its_looks(api: Api) -> None:
    empty = api.client.get("/v1/rollout").json()
    budget = empty.pop("budget")
    assert empty == {"rollout": None, "rollouts": [], "holdback": None, "loop": None}
    assert (budget["left"], budget["tests"], budget["level"]) == pytest.approx((0.1, 0, 0.005))
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


OF_OTHERS = [
    ("/v1/rollout/promote", "candidate", "takes the parameter rollout alone, got 'candidate'"),
    ("/v1/rollout/abort", "champion", "takes the parameter rollout alone"),
    ("/v1/rollout/pause", "rolout", "takes the parameter rollout alone, got 'rolout'"),
    ("/v1/rollout/approve", "rollout", "takes the parameter candidate alone"),
    ("/v1/rollout/rollback", "rollout", "takes the parameter champion alone"),
    ("/v1/rollout/reset-budget", "rollout", "takes the parameter why alone"),
    ("/v1/rollout/abort", "why", "takes the parameter rollout alone"),
    ("/v1/loop/abort", "rollout", "takes the parameter round alone"),
    ("/v1/loop/run", "round", "takes no parameter, got 'round'"),
]


NAMED = {"/v1/rollout/rollback": {"champion": "policy@base"}}


@pytest.mark.parametrize(("path", "name", "words"), OF_OTHERS)
def test_an_act_passes_over_no_parameter_that_is_not_its_own(api: Api, path: str, name: str, words: str) -> None:
    """It might narrow what is meant, and the act would be done on something else."""
    a_test(api)
    told = api.client.post(path, params={**NAMED.get(path, {}), name: "x"})
    error = told.json()["error"]
    assert (told.status_code, error["param"]) == (422, name) and f"POST {path} {words}" in error["message"]
    with api.store.read() as tx:
        assert requests.asked(tx) == []


@pytest.mark.usefixtures("controller")
def test_a_reset_of_the_budget_says_who_and_why(api: Api) -> None:
    with api.store.write() as tx:
        now = time.time()
        spent = RolloutState("r", "policy@base", V1.name, "salt", 1, 0.5, RolloutStatus.ABORTED, now, now, now)
        rollouts.put(tx, replace(spent, level=0.005))
    assert api.client.get("/v1/rollout").json()["budget"]["left"] == pytest.approx(0.095)
    done = api.client.post("/v1/rollout/reset-budget", params={"why": " another product "})
    words = "the error budget begins anew, by operator: another product"
    assert done.json() == {"action": "reset-budget", "result": words}
    told = api.client.get("/v1/rollout").json()["budget"]
    assert (told["left"], told["tests"], told["by"], told["why"]) == (0.1, 0, "operator", "another product")
    api.client.post("/v1/rollout/reset-budget", params={"why": "again"}, headers=bearer(token(api, Scope.ADMIN)))
    with api.store.read() as tx:
        last = rollouts.last_reset(tx)
    assert last is not None and (last.who, last.why) == ("app", "again")


@pytest.mark.parametrize(
    ("why", "status"), [(None, 422), ("", 422), ("  ", 422), ("two\nlines", 422), ("a\x00b", 400), ("w" * 256, 400)]
)
def test_a_reset_of_the_budget_needs_a_reason_of_one_line(api: Api, why: str | None, status: int) -> None:
    told = api.client.post("/v1/rollout/reset-budget", params={} if why is None else {"why": why})
    assert (told.status_code, told.json()["error"]["param"]) == (status, "why")
    with api.store.read() as tx:
        assert requests.asked(tx) == []


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
