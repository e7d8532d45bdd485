"""GET /v1/models: the alias and every servable version."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from kto_ray.serve.gateway.door import Door


def router(door: Door) -> APIRouter:
    routes = APIRouter()

    @routes.get("/v1/models")
    async def models() -> dict[str, Any]:
        view, name = door.view, door.config.model.served_name
        ids = [name, *(f"{name}@{alias}" for alias in sorted(view.aliases)), *sorted(view.servable)]
        data = [{"id": i, "object": "model", "created": 0, "owned_by": "kto_ray"} for i in dict.fromkeys(ids)]
        return {"object": "list", "data": data}

    return routes
