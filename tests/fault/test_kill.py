"""kill -9 of the controller, the training worker and the policy replica in one turn of the loop: it completes, no
acknowledged feedback is lost, and what users see of it is a pause."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from kto_ray.store import leases, rounds, tallies
from tests.support.service import Service, Traffic, ended, give_labels, kill, service

pytestmark = [pytest.mark.fault, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, free_port: Any) -> Iterator[Service]:
    folder: Path = tmp_path_factory.mktemp("kill")
    with service(folder, free_port(), "kto.epochs=3", "serve.heartbeat_timeout_s=5") as started:
        yield started


def controller_pid(run: Service) -> int | None:
    """Of the controller that acts; None while the lease of a killed one runs out."""
    with run.store.read() as tx:
        holder = leases.holder(tx, leases.CONTROLLER)
    return holder.pid if holder else None


def kill_controller(run: Service) -> None:
    """Kill the controller and wait until another holds the lease."""
    old = controller_pid(run)
    assert old is not None
    kill(old)
    run.wait("another controller", lambda: True if controller_pid(run) not in (None, old) else None, 90)


def training(run: Service, step: int) -> Any:
    """The training's progress, once it is past `step`."""

    def reached() -> Any:
        current = run.get("/v1/loop")["round"]
        progress = current and current["train_metrics"]
        return progress if progress and progress.get("step", 0) > step else None

    return run.wait(f"training past step {step}", reached, 240)


def test_the_loop_completes_whatever_is_killed(run: Service) -> None:
    given = give_labels(run, users=30)
    run.wait_stage("snapshot", "train")
    kill_controller(run)  # while a snapshot is frozen or training starts

    progress = training(run, 2)
    kill(progress["pid"])  # the training worker: Ray Train restarts it from the last checkpoint
    again = run.wait("another training worker", lambda: _other_pid(run, progress["pid"]), 240)
    assert again["step"] <= again["steps"]

    training(run, 6)
    kill_controller(run)  # and its training job with it: the next controller resumes it

    run.wait_stage("gate", "rollout")
    replica = run.get("/readyz")["replicas"][0]
    engine = psutil.Process(replica["pid"]).children(recursive=True)
    kill(replica["pid"])  # the policy replica: requests wait for the next one, and its engine ends with it
    began = time.monotonic()
    answer = run.chat(user="patient")
    assert answer.status_code == 200, answer.text
    assert time.monotonic() - began < 240
    fresh = run.wait("a fresh replica", lambda: _fresh(run, replica["replica"]), 120)
    assert fresh["replica"] != replica["replica"]
    assert len(engine) >= 2 and all(ended(process) for process in engine), engine

    with Traffic(run) as traffic:
        round_ = run.wait_stage("done", timeout_s=480)
    assert traffic.failures == []
    assert round_["outcome"] == "promoted", round_
    assert run.get("/v1/adapters")["aliases"]["champion"] == round_["adapter"]
    with run.store.read() as tx:
        assert tallies.total(tx).stored == given + traffic.thumbs
        assert rounds.count(tx) == 1
    history = run.get(f"/v1/loop/rounds/{round_['id']}")["history"]
    assert [entry["step"] for entry in history] == list(range(1, round_["train_metrics"]["steps"] + 1))
    used = [entry["rows"] for entry in history]
    assert used == sorted(set(used)), "every step used rows that no other step used"


def _other_pid(run: Service, pid: int) -> Any:
    current = run.get("/v1/loop")["round"]
    progress = current["train_metrics"]
    return progress if progress.get("pid", pid) != pid else None


def _fresh(run: Service, dead: str) -> Any:
    return next((r for r in run.get("/readyz")["replicas"] if r["replica"] != dead), None)
