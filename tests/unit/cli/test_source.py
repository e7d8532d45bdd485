"""A command asks the running service, and opens the store only where none runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from kto_ray.cli.source import Source
from kto_ray.config import Config, load_config
from kto_ray.store import Store, completions
from tests.conftest import FreePort
from tests.support.engine import StandIn
from tests.support.provenance import completion
from tests.support.served import served


@pytest.fixture
def config(tmp_path: Path, free_port: FreePort) -> Config:
    return load_config(None, (f"home={tmp_path}", f"http.port={free_port()}"))


def test_both_tell_the_same(config: Config, sqlite_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with sqlite_store.write() as tx:
        completions.insert(tx, completion("c1", "ann"))
    by_store = Source(config)
    told = (by_store.loop(), by_store.adapters(), by_store.rollout(), by_store.lineage("ann"))
    assert not by_store.running and told[0]["completions"] == 1
    with served(config, sqlite_store, StandIn()):
        monkeypatch.setattr("kto_ray.store.open_store", lambda url: pytest.fail("a service runs"))
        by_http = Source(config)
        assert by_http.running
        assert (by_http.loop(), by_http.adapters(), by_http.rollout(), by_http.lineage("ann")) == _as_json(told)
        assert by_http.readiness()["ready"] is True
        with pytest.raises(ValueError, match="'nobody' is no adapter version"):
            by_http.lineage("nobody")


def test_a_service_of_another_store_is_not_asked(config: Config, sqlite_store: Store, tmp_path: Path) -> None:
    other = load_config(None, (f"home={tmp_path}/other", f"http.port={config.http.port}"))
    with served(config, sqlite_store, StandIn()):
        assert not Source(other).running
        with pytest.raises(ValueError, match=r"no service of .*/other.* to pause; start it with `kto-ray serve`"):
            Source(other).steer("pause")


def test_nobody_to_steer_is_told(config: Config) -> None:
    with pytest.raises(ValueError, match="start it with `kto-ray serve`"):
        Source(config).steer("promote")


def _as_json(told: object) -> object:
    import json

    return tuple(json.loads(json.dumps(told)))
