"""A round of several candidates in a real service: each is trained and judged, the best meets users and is promoted,
the other is let go, and the round tells both."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from kto_ray.records.completions import Arm, Completion
from kto_ray.records.feedback import Feedback, FeedbackKind
from kto_ray.store import completions, feedback
from tests.support.service import Service, Traffic, service

pytestmark = [pytest.mark.integration, pytest.mark.slow]

EAGER, TIMID = {"learning_rate": 5e-4}, {"learning_rate": 1e-12, "loss_type": "apo_zero_unpaired"}
TWO = f"loop.candidates={json.dumps({'eager': EAGER, 'timid': TIMID})}"
USERS = 64


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, free_port: Any) -> Iterator[Service]:
    with service(tmp_path_factory.mktemp("candidates"), free_port(), TWO, f"loop.min_labels={USERS}") as started:
        yield started


def teach(run: Service) -> None:
    """Users like who likes things, in answers of one length: whoever learns at all tells them apart."""
    now = time.time()
    with run.store.write() as tx:
        for i in range(USERS):
            liked = i % 2 == 0
            row = Completion(
                id=f"c{i}",
                created_at=now,
                model="policy",
                adapter="policy@base",
                arm=Arm.CHAMPION,
                messages=({"role": "user", "content": f"What do you say of place number {i}?"},),
                text=f"I really {'love' if liked else 'hate'} number {i}.",
                finish_reason="stop",
                prompt_tokens=0,
                completion_tokens=0,
                user=f"user-{i}",
            )
            completions.insert(tx, row)
            feedback.record(tx, Feedback(f"f{i}", now, FeedbackKind.THUMB, row.id, row.user, value=liked))


def test_both_are_trained_and_judged_and_the_best_meets_users(run: Service) -> None:
    teach(run)
    assert run.wait_stage("reload", "rollout", "done", timeout_s=420)["stage"] != "done", run.get("/v1/loop")["rounds"]
    with Traffic(run) as traffic:
        ended = run.wait_stage("done", timeout_s=150)
    assert (ended["outcome"], traffic.failures) == ("promoted", []), ended
    eager, timid = told = ended["candidates"]
    assert [(one["name"], one["kto"]) for one in told] == [("eager", EAGER), ("timid", TIMID)]
    _both_are_trained_and_judged(run, told)
    assert eager["auc_gain"] > timid["auc_gain"], "one of them has learnt"
    _the_best_met_users(run, ended, eager["adapter"])
    _the_other_is_let_go(run, timid)


def _both_are_trained_and_judged(run: Service, told: list[dict[str, Any]]) -> None:
    """By what each sets, on one snapshot; the round tells of each what its report says."""
    made = {version["name"]: version for version in run.get("/v1/adapters")["adapters"]}
    assert set(made) == {one["adapter"] for one in told} and len(made) == 2
    assert len({version["snapshot"] for version in made.values()}) == 1
    for one in told:
        version, report = made[one["adapter"]], made[one["adapter"]]["gate"]
        assert {name: version["manifest"]["config"]["kto"][name] for name in one["kto"]} == one["kto"]
        assert one["train_metrics"]["steps"] > 0 and report["metrics"]["n_guard"] > 0
        assert one["decision"] == report["decision"] == "promote-to-canary"
        assert one["reason"] == "; ".join(report["reasons"]) and one["auc_gain"] == report["metrics"]["auc_gain"]
    rows = {version["gate"]["metrics"]["n_holdout_desirable"] for version in made.values()}
    assert len(rows) == 1 and rows != {0}, "both on the same held-out rows"


def _the_best_met_users(run: Service, ended: dict[str, Any], best: str) -> None:
    """It was the first, so it was loaded a second time."""
    test, page = run.get("/v1/rollout")["rollout"], run.get("/v1/adapters")
    assert (ended["adapter"], test["challenger"], test["status"]) == (best, best, "promoted")
    assert (page["aliases"]["champion"], page["aliases"]["previous"]) == (best, "policy@base")
    assert "challenger" not in page["aliases"] and ended["stage_s"]["reload"] > 0
    with run.store.read() as tx:
        assert completions.count_of_adapter(tx, best) > 0


def _the_other_is_let_go(run: Service, other: dict[str, Any]) -> None:
    """No user met it, no replica holds it, and nobody can ask for it by name."""
    name = other["adapter"]
    with run.store.read() as tx:
        assert completions.count_of_adapter(tx, name) == 0
    assert run.wait("its unloading", lambda: _is_held_nowhere(run, name), 60)
    assert name not in {model["id"] for model in run.get("/v1/models")["data"]}
    assert run.chat(model=name).status_code == 404


def _is_held_nowhere(run: Service, name: str) -> bool | None:
    return None if any(name in replica["held"] for replica in run.get("/readyz")["replicas"]) else True
