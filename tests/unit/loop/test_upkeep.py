"""Retention beside the loop: now and then, never twice at once, and what it meets does not end the controller."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from kto_ray.config import Config
from kto_ray.loop.upkeep import Upkeep
from kto_ray.provenance.retention import Kept
from kto_ray.store import Store
from kto_ray.store.custody import Busy


@pytest.fixture
def config(sqlite_store: Store, tmp_path: Path) -> Config:
    return Config.model_validate({"home": str(tmp_path), "retention": {"completions_days": 30}})


def test_it_runs_now_and_then_and_goes_on_where_it_was(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    began, go_on, after = threading.Event(), threading.Event(), list[Any]()

    def keep(store: Store, config: Config, now: float, begin: Any, until: float) -> Kept:
        after.append(begin)
        began.set()
        assert go_on.wait(10)
        return Kept(after=(5.0, "c5"))

    monkeypatch.setattr("kto_ray.provenance.retention.keep", keep)
    monkeypatch.setattr("kto_ray.loop.upkeep.EVERY_S", 0.0)
    upkeep = Upkeep(config)
    upkeep.look()
    assert began.wait(10)
    upkeep.look()
    assert after == [(0.0, "")], "the first still goes on"
    go_on.set()
    assert upkeep._thread is not None
    upkeep._thread.join()
    monkeypatch.setattr("kto_ray.loop.upkeep.EVERY_S", 600.0)
    upkeep.look()
    upkeep._thread.join()
    upkeep.look()
    assert after == [(0.0, ""), (5.0, "c5")]


def test_nothing_runs_where_everything_is_kept(tmp_path: Path) -> None:
    upkeep = Upkeep(Config(home=str(tmp_path)))
    upkeep.look()
    assert upkeep._thread is None


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), Busy("sealing goes on")])
def test_a_full_disk_is_told_and_a_sealing_waited_for(
    config: Config, error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def keep(*_: object) -> None:
        raise error

    monkeypatch.setattr("kto_ray.provenance.retention.keep", keep)
    Upkeep(config).run()
    told = [record.getMessage() for record in caplog.records]
    assert ("No space left" in "".join(told)) == isinstance(error, OSError)
