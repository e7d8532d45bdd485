"""GET /v1/models and /v1/models/{id}: the alias and every servable version."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import APIRouter

from kto_ray.serve.gateway.door import Door
from kto_ray.serve.gateway.errors import ApiError, short


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
        return Models(tuple(Model(name) for name in _names(door)))

    @routes.get("/v1/models/{model:path}")  # a name may hold a slash, and comes percent-encoded or not
    async def one(model: str) -> Model:
        if model not in (names := _names(door)):
            words = f"model {short(model)} does not exist; served are: {', '.join(names)}"
            raise ApiError(404, words, "model", "model_not_found")
        return Model(model)

    return routes


def _names(door: Door) -> list[str]:
    view, name = door.view, door.config.model.served_name
    return list(dict.fromkeys([name, *(f"{name}@{alias}" for alias in sorted(view.aliases)), *sorted(view.servable)]))
