"""S3 that is away for a minute, in the middle of a training, of a load and of the start of new replicas: chat knows
nothing of it, and the round completes. One cluster, whose rounds follow each other."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from kto_ray.bench.postgres import Server
from tests.support.cluster import ON_NODES, Cluster, cluster
from tests.support.streams import users

pytestmark = [*ON_NODES, pytest.mark.timeout(1500)]

POOLS = {"serve-1": "serve", "serve-2": "serve", "train-1": "train"}
SETTINGS = (
    "serve.replicas=2",
    "serve.reconcile_s=4",  # so that the cut comes before the load
    "loop.max_rounds=2",
    "kto.epochs=6",
)
LANES = ((0,), (2,), (5, 1), (15,), (40,))
AWAY_S = 60.0
# Serve's own, and what Ray Train keeps beside a training: they ask for no CPU, and nobody can tell them where to be.
OF_PLATFORM = (
    "Serve",
    "Proxy",
    "build_serve_application",
    "TelemetryAgent",
    "PlacementGroupCleaner",
    "PreemptionWatcher",
)
STAGES = ["snapshot", "train", "load", "gate", "rollout", "done"]


@pytest.fixture(scope="module")
def run(postgres_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("storage"), postgres_server, POOLS, *SETTINGS) as started:
        started.migrate()
        started.make_key()
        started.deploy()
        started.wait_running()
        yield started


def give_labels(run: Cluster, named: str, number: int = 60) -> None:
    """Users chat and judge, every second one up."""

    def one(i: int) -> None:
        answer = run.chat(f"Tell {named} about the number {i}.", user := f"{named}-{i % 30}")
        answer.raise_for_status()
        body = {"completion_id": answer.json()["id"], "kind": "thumb", "value": i % 2 == 0, "user": user}
        run.post("/v1/feedback", body).raise_for_status()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, range(number)))


def newest(run: Cluster) -> Any:
    rounds = run.get("/v1/loop")["rounds"]
    return rounds[-1] if rounds else None


def wait_stage(run: Cluster, number: int, stage: str, timeout_s: float = 300.0) -> Any:
    """The round, once it stands in a stage or past it."""

    def reached() -> Any:
        current = newest(run)
        if current is None or current["id"] < number:
            return None
        assert current["outcome"] in (None, "promoted"), current
        return current if STAGES.index(current["stage"]) >= STAGES.index(stage) else None

    return run.wait(f"round {number} in {stage}", reached, timeout_s)


@contextmanager
def away(run: Cluster, hang: bool) -> Iterator[None]:
    """S3 is away, for a minute in all."""
    (run.storage.hang if hang else run.storage.refuse)()
    began = time.monotonic()
    try:
        yield
        time.sleep(max(0.0, AWAY_S - (time.monotonic() - began)))
    finally:
        run.storage.flow()


def promote(run: Cluster, number: int) -> None:
    """The round's A/B test ends, by an operator's word."""
    wait_stage(run, number, "rollout")
    assert run.post("/v1/rollout/promote").status_code == 200
    ended = wait_stage(run, number, "done")
    assert ended["outcome"] == "promoted", ended


def test_it_is_away_while_a_round_trains(run: Cluster) -> None:
    def trains() -> Any:
        current = newest(run)
        return current if current and current["train_metrics"].get("step", 0) > 3 else None

    with users(run.endpoints, run.key, LANES) as asking:
        give_labels(run, "ann")
        began = run.wait("a training", trains, 300)
        assert began["stage"] == "train" and began["train_metrics"]["step"] < began["train_metrics"]["steps"] - 5, began
        with away(run, hang=False):
            pass
        waits = newest(run)
        assert (waits["stage"], waits["attempts"]) == ("train", 0), waits
        promote(run, 1)
    assert asking.ledger.broken == []


def test_it_is_away_while_new_replicas_start(run: Cluster) -> None:
    champion = run.get("/v1/adapters")["aliases"]["champion"]
    assert champion != "policy@base"
    for name in ("serve-1", "serve-2"):
        shutil.rmtree(run.nodes.nodes[name].folder / "cache" / "adapters")  # as a fresh pod has it
    old = {one["replica_id"] for one in run.replicas("Policy")}
    with users(run.endpoints, run.key, LANES) as asking:
        with away(run, hang=False):
            run.deploy()
            time.sleep(AWAY_S - 5)
            assert run.state()["status"] == "DEPLOYING"
            assert old <= {one["replica_id"] for one in run.replicas("Policy") if one["state"] == "RUNNING"}
        run.wait_running()
    assert asking.ledger.broken == []
    assert not old & {one["replica_id"] for one in run.replicas("Policy")}
    told = run.get("/readyz")
    assert all(champion in one["held"] for one in told["replicas"] if one["replica"] not in old), told


def test_it_is_away_while_a_candidate_loads(run: Cluster) -> None:
    with users(run.endpoints, run.key, LANES) as asking:
        give_labels(run, "bob")
        soon(lambda: newest(run)["id"] == 2 and newest(run)["stage"] == "load", 300)
        with away(run, hang=True):
            time.sleep(AWAY_S - 5)
            assert newest(run)["stage"] == "load"
        promote(run, 2)
    assert asking.ledger.broken == []


def test_what_computes_has_run_on_training_nodes_alone(run: Cluster) -> None:
    there = run.on_nodes("train")
    assert {"seal", "learn", "examine", "hashes", "_map_task", "RayTrainWorker"} <= there, there
    others = run.on_nodes("serve") | run.on_nodes("head")
    assert {name for name in others if not name.startswith(OF_PLATFORM)} == set(), "Ray Data and training kept away"


def soon(told: Callable[[], bool], timeout_s: float) -> None:
    """Return as soon as it is so."""
    deadline = time.monotonic() + timeout_s
    while not told():
        assert time.monotonic() < deadline
        time.sleep(0.1)
