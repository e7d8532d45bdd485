"""PostgreSQL that comes after the application: nobody has to deploy again."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from kto_ray.bench.postgres import Server
from tests.support.cluster import ON_NODES, cluster

pytestmark = [*ON_NODES, pytest.mark.timeout(900)]

AWAY_S = 30.0


def test_a_deploy_waits_for_its_database_and_for_its_schema(postgres_server: Server, tmp_path: Path) -> None:
    with cluster(tmp_path, postgres_server, {"serve-1": "serve"}) as run:
        run.store.refuse()
        run.deploy()
        time.sleep(AWAY_S)
        assert run.state()["status"] == "DEPLOYING"
        run.store.flow()
        time.sleep(AWAY_S / 2)
        assert run.state()["status"] == "DEPLOYING", "there is no schema yet"
        run.migrate()
        run.make_key()
        run.wait_running()
        answer = run.chat()
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["finish_reason"] == "stop"
