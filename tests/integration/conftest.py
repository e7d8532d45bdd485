"""One local Ray for the whole session, and one small snapshot to train on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_API_SERVER_ADDRESS"] = "http://127.0.0.1:9"  # as in kto_ray/cluster.py

import pytest
import ray

from kto_ray.cluster import ask_for_tokens
from tests.support.sealed import Sealed, seal


@pytest.fixture(scope="session")
def ray_local() -> Iterator[Any]:
    ask_for_tokens()
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Sealed:
    return seal(tmp_path_factory.mktemp("snapshot"))
