"""A service whose adapters are swapped under fire: the real engine, two replicas and a store that can be away. Each
module that uses it starts one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from kto_ray.bench.postgres import Server
from kto_ray.store import open_store
from tests.support.fired import SETTINGS
from tests.support.network import Proxy, proxied
from tests.support.steered import Steered, steered
from tests.support.swaps import swap


@pytest.fixture(scope="module")
def store_proxy(postgres_server: Server) -> Iterator[Proxy]:
    address = sa.make_url(postgres_server.url)
    assert address.host is not None and address.port is not None
    with proxied(address.host, address.port) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def run(
    postgres_server: Server, store_proxy: Proxy, tmp_path_factory: pytest.TempPathFactory, free_port: Any
) -> Iterator[Steered]:
    """Its champion is a second one, so that there is a previous champion."""
    there = postgres_server.empty("fire")
    url = sa.make_url(there).set(port=store_proxy.port).render_as_string(hide_password=False)
    with steered(tmp_path_factory.mktemp("fire"), free_port(), f"store_url={url}", *SETTINGS) as started:
        started.store = open_store(there)  # the tests' own way to it is never away
        swap(started)
        swap(started)
        yield started
