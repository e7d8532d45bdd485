"""A loop on a store of its own, with jobs that are made up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kto_ray.config import Config, load_config
from kto_ray.loop.step import Loop
from kto_ray.store import Store
from tests.support.loop import Jobs


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load_config(None, (f"home={tmp_path}", "loop.min_labels=8"))


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Jobs]:
    made = Jobs(tmp_path)
    monkeypatch.setattr("kto_ray.loop.work.start", made.start)
    monkeypatch.setattr("ray.wait", lambda refs, timeout: (refs, []))
    monkeypatch.setattr("ray.get", made.get)
    yield made


@pytest.fixture
def loop(config: Config, sqlite_store: Store, jobs: Jobs) -> Loop:
    return Loop(config, policy=None)
