"""GET /v1/models: the alias and every servable version."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import APIRouter

from kto_ray.serve.gateway.door import Door


@dataclass(frozen=True, slots=True)
class Model:
    """A name that `model` may have, in OpenAI's shape."""

    id: str
    object: str = "model"
    created: int = 0
    owned_by: str = "kto_ray"


@dataclass(frozen=True, slots=True)
class Models:
    data: tuple[Model, ...]
    object: str = "list"


def router(door: Door) -> APIRouter:
    routes = APIRouter()

    @routes.get("/v1/models")
    async def models() -> Models:
        view, name = door.view, door.config.model.served_name
        ids = [name, *(f"{name}@{alias}" for alias in sorted(view.aliases)), *sorted(view.servable)]
        return Models(tuple(Model(i) for i in dict.fromkeys(ids)))

    return routes
