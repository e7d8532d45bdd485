"""The gateway's Serve deployment: it hands the app a store and the policy's handle, and is nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from kto_ray.config import Config
from kto_ray.serve.gateway.api import build
from kto_ray.serve.gateway.steady import steady
from kto_ray.store import store_of
from kto_ray.store.database import DOOR, STARTED_S


def split(together: str) -> list[str]:
    """Events that came together; JSON has no line feed of its own, so that an empty line stands between two alone."""
    return [f"{event}\n\n" for event in together.split("\n\n") if event] if together.startswith("data:") else [together]


@serve.ingress()
class Gateway:
    """One HTTP ingress replica. Its state is a view of the store, and a spool while that is away."""

    def __init__(self, config: Config, policy: DeploymentHandle, controller: DeploymentHandle) -> None:
        self._config = config
        self._policy = policy.options(stream=True)
        self._controller = controller  # bound so that the application holds it; they meet in the store only

    async def __serve_build_asgi_app__(self) -> FastAPI:
        store = await asyncio.to_thread(store_of, self._config, DOOR, STARTED_S)  # a replica that waits can be stopped
        app = build(self._config, store, self._generate)
        steady()
        return app

    async def _generate(self, body: Mapping[str, Any], adapter: str, everywhere: bool) -> AsyncGenerator[str, None]:
        events = self._policy.generate.remote(body, adapter, everywhere)
        try:
            async for together in events:
                for event in split(together):
                    yield event
        except (asyncio.CancelledError, GeneratorExit):
            events.cancel()  # nobody reads on: the engine stops
            raise
