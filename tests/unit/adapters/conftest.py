"""A home to publish to, and a cache of private copies that is the test's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kto_ray.adapters.publish import publish
from kto_ray.config import Config
from kto_ray.records.adapters import AdapterVersion
from tests.support.adapters import write
from tests.support.rows import manifest

Published = Callable[..., AdapterVersion]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KTO_RAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "adapters"


@pytest.fixture
def published(tmp_path: Path, cache: Path) -> Published:
    """Publishes a tiny adapter, with any setting of its adapter_config.json."""

    def made(keys: tuple[str, ...] = (), home: str | None = None, **settings: Any) -> AdapterVersion:
        section = {"signing_keys": keys}
        where = {"home": home or str(tmp_path / "home"), "store_url": "sqlite:////tmp/unused.db"}
        config = Config.model_validate({**where, "adapters": section, "http": {"spool": "/tmp/unused"}})
        return publish(config, write(tmp_path / "checkpoint", **settings), 7, manifest(), None, created_at=5.0)

    return made
