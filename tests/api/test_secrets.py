"""What pages show of the loop holds no password, no salt, and no way to guess one."""

from __future__ import annotations

import time

from kto_ray.records.adapters import AdapterVersion
from kto_ray.records.rollouts import RolloutState, RolloutStatus
from kto_ray.records.rounds import Outcome
from kto_ray.store import adapters, rollouts, rounds
from tests.api.conftest import Api

SECRET = "s3cr3t"


def test_no_page_shows_the_salt_of_a_test(api: Api) -> None:
    now = time.time()
    with api.store.write() as tx:
        for name, at in (("r1", now - 1), ("r2", now)):
            state = RolloutState(name, "policy@base", "policy@v1", SECRET, 1, 0.5, RolloutStatus.ABORTED, at, at)
            rollouts.put(tx, state)
    told = api.client.get("/v1/rollout")
    assert [test["id"] for test in told.json()["rollouts"]] == ["r1", "r2"] and told.json()["rollout"]["id"] == "r2"
    assert SECRET not in told.text and "salt" not in told.text


def test_no_page_shows_the_password_of_a_server(api: Api) -> None:
    uri, tracking = f"s3://AKIA:{SECRET}@bucket/kto/adapters/v1", f"http://kto:{SECRET}@mlflow:5000/?token={SECRET}"
    manifest = {"name": "policy@v1", "config": {"train": {"mlflow_uri": tracking, "rank": [8, tracking]}}}
    with api.store.write() as tx:
        version = AdapterVersion("policy@v1", 1, 1.0, uri, "0" * 64, "s", None, "policy@base", 8, manifest)
        adapters.insert(tx, version)
        rounds.update(tx, rounds.insert(tx, 5.0).ended(Outcome.FAILED, f"cannot reach {tracking}: refused", 6.0))
    told = api.client.get("/v1/adapters")
    (shown,) = told.json()["adapters"]
    assert SECRET not in told.text and "AKIA" not in told.text
    assert shown["uri"] == "s3://***@bucket/kto/adapters/v1"
    assert shown["manifest"]["config"]["train"]["mlflow_uri"] == "http://***@mlflow:5000/?token=***"
    loop = api.client.get("/v1/loop")
    assert SECRET not in loop.text and "cannot reach http://***@mlflow:5000/?token=***" in loop.text
    with api.store.read() as tx:
        assert adapters.get(tx, "policy@v1") == version, "only what is shown"
