"""The HTTP contract as an ASGI app: a router a noun, on a door that tests can give an engine of their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI

from kto_ray.config import Config
from kto_ray.serve.gateway import (
    chat,
    completions,
    cors,
    document,
    errors,
    feedback,
    health,
    lineage,
    loop,
    models,
    responses,
    users,
)
from kto_ray.serve.gateway.door import Door, Generate
from kto_ray.serve.gateway.guard import Guard
from kto_ray.serve.gateway.limits import Limits
from kto_ray.store import Store

ROUTERS = (chat, responses, models, feedback, completions, users, lineage, loop, health)


def build(config: Config, store: Store, generate: Generate) -> FastAPI:
    """The gateway's app. `generate` answers a chat request, as `Policy.generate` does."""
    door = Door(config, store, generate)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(door.close)

    app = FastAPI(
        title="kto_ray",
        version=version("kto-ray"),
        docs_url=None,
        redoc_url=None,
        responses=errors.RESPONSES,
        lifespan=lifespan,
    )
    app.add_middleware(Guard, door=door, limits=Limits(config.limits))  # what is added later stands in front
    errors.install(app)
    cors.install(app, config)
    document.install(app)
    for module in ROUTERS:
        app.include_router(module.router(door))
    app.state.door = door
    return app
