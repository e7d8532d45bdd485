"""An edit of the config's file with a raised revision, under streams: no answer breaks."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from kto_ray.bench.postgres import Server
from tests.support.cluster import ON_NODES, Cluster, cluster
from tests.support.streams import users

pytestmark = [*ON_NODES, pytest.mark.timeout(900)]

POOLS = {"serve-1": "serve", "serve-2": "serve"}
LANES = ((0,), (2,), (5,), (10, 3), (20,), (40,), (60,), (20, 1), (0, 5), (30,))
BEGUN_S = 10.0  # well below what a replica takes to start


def edit(run: Cluster) -> Cluster:
    """Another longest answer: nothing that the engine knows, but every replica is made anew."""
    limit = run.config.serve.max_output_tokens + 1
    run.deploy(
        run.config.model_copy(update={"serve": run.config.serve.model_copy(update={"max_output_tokens": limit})})
    )
    return run


@pytest.mark.parametrize("policies", [1, 2])
def test_an_edit_breaks_no_answer(postgres_server: Server, tmp_path: Path, policies: int) -> None:
    with cluster(tmp_path, postgres_server, POOLS, f"serve.replicas={policies}") as run:
        run.migrate()
        run.make_key()
        run.deploy()
        run.wait_running()
        old = {one["replica_id"] for name in ("Gateway", "Policy") for one in run.replicas(name)}
        with users(run.endpoints, run.key, LANES) as asking:
            time.sleep(15)
            edit(run).wait_running(400)
            time.sleep(10)
        left = {one["replica_id"] for name in ("Gateway", "Policy") for one in run.replicas(name)}
    assert not old & left, "every replica is a new one"
    assert asking.ledger.broken == []
    assert asking.ledger.waited_s < BEGUN_S, "the old ones answered until the new ones did"
    assert asking.ledger.streams > 40, asking.ledger.words
