"""What every route is given: the config, the store, the view and the engine behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import sqlalchemy as sa

from kto_ray.config import Config
from kto_ray.serve.gateway.view import View, Viewer
from kto_ray.store import Store

T = TypeVar("T")

# One chat request and the adapter that is to answer it; yields what `Policy.generate` does; closed, it stops it.
Generate = Callable[[Mapping[str, Any], str], AsyncGenerator[str, None]]


@dataclass(frozen=True, slots=True)
class Door:
    config: Config
    store: Store
    viewer: Viewer
    generate: Generate

    @property
    def view(self) -> View:
        return self.viewer.view

    async def read(self, query: Callable[[sa.Connection], T]) -> T:
        def run() -> T:
            with self.store.read() as tx:
                return query(tx)

        return await asyncio.to_thread(run)

    async def write(self, change: Callable[[sa.Connection], T]) -> T:
        """Shielded: a client that leaves while its answer is being written must not lose the row."""

        def run() -> T:
            with self.store.write() as tx:
                return change(tx)

        return await asyncio.shield(asyncio.to_thread(run))
