"""A serving node that is to end, under streams as long as a node's drain bears: each is heard to its end."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from kto_ray.bench.postgres import Server
from tests.support.cluster import DRAIN_S, ON_NODES, POLICY_CPUS, cluster
from tests.support.streams import Endpoints, users

pytestmark = [*ON_NODES, pytest.mark.timeout(900)]

POOLS = {"serve-1": "serve", "serve-2": "serve"}
LANES = ((5,), (10,), (15, 1), (28,), (40,), (55,), (80,), (100,), (120,), (120,), (0,), (2,))
LAST = ((120,), (120,), (120,), (90,))  # the last that the node takes
PRE_STOP_S = 10.0
HEAR_S = 60.0  # of new requests, on the other node


@pytest.mark.parametrize("places", [1, 2])
def test_a_node_that_ends_cuts_no_answer(postgres_server: Server, tmp_path: Path, places: int) -> None:
    """With a place for its policy on the other node, and without."""
    with cluster(tmp_path, postgres_server, POOLS, "serve.replicas=2", cpus=places * POLICY_CPUS) as run:
        run.migrate()
        run.make_key()
        run.deploy()
        run.wait_running()
        on = {one["node_id"] for one in run.replicas("Policy")}
        assert len(on) == 2, "a policy on each node"
        going = run.nodes.nodes["serve-1"]
        only = Endpoints({going.name: going.ip})
        with users(run.endpoints, run.key, LANES) as asking:
            time.sleep(20)
            with users(only, run.key, LAST) as last:
                time.sleep(2)
                last.stop()  # after the one answer of each
                run.endpoints.leave(going.name)  # which every Service does at once where a pod is to end
                time.sleep(PRE_STOP_S)
                before = asking.ledger.streams
                going.terminate()
                time.sleep(HEAR_S)
                asking.stop()
        going.wait(DRAIN_S)
        print(going.log[going.log.index("received SIGTERM") - 100 :])
        assert asking.ledger.broken + last.ledger.broken == []
        assert last.ledger.longest_s > 119 and asking.ledger.streams - before > 20, asking.ledger.words
