"""The gateway's view of the store, over an outage."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from kto_ray.config import Config, load_config
from kto_ray.records.adapters import CHALLENGER, CHAMPION
from kto_ray.records.replicas import LoadFault, ReplicaReport
from kto_ray.serve.gateway import view
from kto_ray.serve.gateway.errors import ApiError
from kto_ray.serve.gateway.view import Viewer
from kto_ray.store import Store, adapters, replicas

TIMEOUT_S = 0.6
BEST, OTHER = "policy@v2-bbbbbb", "policy@v1-aaaaaa"
R = ReplicaReport("r", "node", 1, (BEST, OTHER))


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load_config(None, (f"home={tmp_path}", f"serve.heartbeat_timeout_s={TIMEOUT_S}"))


@pytest.fixture
def viewer(config: Config, sqlite_store: Store, monkeypatch: pytest.MonkeyPatch) -> Viewer:
    """It reads when it is told to."""
    monkeypatch.setattr(view, "REFRESH_S", 3600.0)
    with sqlite_store.write() as tx:
        adapters.set_alias(tx, CHAMPION, BEST, 1.0)
        adapters.set_alias(tx, CHALLENGER, OTHER, 1.0)
        replicas.report(tx, R, 15.0)
    return Viewer(config, sqlite_store)


def test_after_an_outage_the_last_view_stands_until_replicas_can_have_been_heard_of(
    viewer: Viewer, sqlite_store: Store
) -> None:
    before = viewer.view
    time.sleep(TIMEOUT_S + 0.1)  # nothing can be read, and no replica can report
    viewer.refresh()
    assert viewer.view is before and viewer.age_s > TIMEOUT_S, "no look, and its age is told"
    assert before.ready.ready and before.route(OTHER, None, "policy").adapter == OTHER
    with sqlite_store.write() as tx:
        replicas.report(tx, R, 15.0)
    viewer.refresh()
    assert viewer.view is not before and viewer.view.ready.ready and viewer.age_s < TIMEOUT_S


def test_what_every_replica_holds_is_sure_only_while_the_store_is_there(
    viewer: Viewer, monkeypatch: pytest.MonkeyPatch
) -> None:
    viewer.refresh()
    assert viewer.sure_of(BEST) and not viewer.sure_of("policy@v9")
    monkeypatch.setattr(view, "SURE_S", 0.2)
    time.sleep(0.3)
    assert not viewer.sure_of(BEST) and BEST in viewer.view.servable
    viewer.refresh()
    assert viewer.sure_of(BEST)


def test_replicas_that_died_meanwhile_are_missed_when_it_is_over(viewer: Viewer) -> None:
    time.sleep(TIMEOUT_S + 0.1)
    viewer.refresh()
    assert viewer.view.ready.ready
    time.sleep(TIMEOUT_S + 0.1)
    viewer.refresh()
    assert not viewer.view.ready.ready
    with pytest.raises(ApiError):
        viewer.view.route(OTHER, None, "policy")


def test_without_an_outage_the_last_replica_is_missed_at_once(viewer: Viewer) -> None:
    began = time.monotonic()
    while time.monotonic() < began + TIMEOUT_S + 0.1:
        viewer.refresh()
        time.sleep(0.05)
    assert not viewer.view.ready.ready


def test_who_cannot_be_loaded_is_not_asked_for_after_an_outage(viewer: Viewer, sqlite_store: Store) -> None:
    """Nobody says so any more, nor anything else."""
    with sqlite_store.write() as tx:
        replicas.report(
            tx, ReplicaReport("r", "node", 1, (OTHER,), errors={BEST: LoadFault("gone", refused=True)}), 15.0
        )
    viewer.refresh()
    assert viewer.view.route("policy", None, "policy").adapter == "policy@base"
    time.sleep(TIMEOUT_S + 0.1)
    viewer.refresh()
    assert viewer.view.route("policy", None, "policy").adapter == "policy@base"
