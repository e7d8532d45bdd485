"""GET /healthz, /readyz and /metrics: where what the platform asks and scrapes is answered."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Literal

import sqlalchemy as sa
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from kto_ray.records.keys import Scope
from kto_ray.serve.gateway.door import Door
from kto_ray.serve.gateway.errors import ApiError
from kto_ray.status.metrics import as_text, metrics, of_gateway
from kto_ray.status.readiness import Readiness, to_strangers


@dataclass(frozen=True, slots=True)
class Health:
    """`store` names the store that this service is of, without telling where it is."""

    store: str
    status: Literal["alive"] = "alive"


def router(door: Door) -> APIRouter:
    routes = APIRouter()
    of_store = door.page(lambda tx: metrics(tx, door.config))

    @routes.get("/healthz")
    async def healthz() -> Health:
        return Health(door.config.store_mark)

    @routes.get("/readyz", response_model=Readiness, responses={503: {"model": Readiness, "description": "Not ready"}})
    async def readyz(request: Request) -> Response:
        told = replace(door.view.ready, view_age_s=door.viewer.age_s, spooled=door.writer.spooled)
        if Scope.ADMIN not in request.state.principal.scopes:
            told = to_strangers(told)
        return JSONResponse(asdict(told), status_code=200 if told.ready else 503)

    @routes.get("/metrics", response_class=PlainTextResponse)
    async def scrape() -> Response:
        try:
            told, up = await of_store(), True
        except (sa.exc.SQLAlchemyError, ApiError):
            told, up = {}, False
        own = of_gateway(door.writer.spooled, door.writer.waiting, door.viewer.age_s, up)
        return Response(as_text(told | own), media_type="text/plain; version=0.0.4")

    return routes
