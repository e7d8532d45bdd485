"""GET /v1/lineage/{name}: from a thumb to what it touched, and back."""

from __future__ import annotations

from fastapi import APIRouter

from kto_ray.provenance.lineage import lineage
from kto_ray.records.lineage import AdapterLineage, RowLineage
from kto_ray.serve.gateway.door import Door
from kto_ray.serve.gateway.errors import ApiError, shortened


def router(door: Door) -> APIRouter:
    routes = APIRouter()

    @routes.get("/v1/lineage/{name:path}")
    async def trace(name: str) -> RowLineage | AdapterLineage:
        try:
            return await door.aside(lambda: lineage(door.store, door.config, name))
        except ValueError as error:
            raise ApiError(404, shortened(str(error), name), param="name") from None

    return routes
