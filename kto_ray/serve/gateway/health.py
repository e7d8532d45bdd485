"""GET /healthz, /readyz and /metrics: where what the platform asks and scrapes is answered."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from kto_ray.records.keys import Scope
from kto_ray.serve.gateway.door import Door
from kto_ray.status.metrics import metrics
from kto_ray.status.readiness import Readiness, readiness, to_strangers


@dataclass(frozen=True, slots=True)
class Health:
    """`store` names the store that this service is of, without telling where it is."""

    store: str
    status: Literal["alive"] = "alive"


def router(door: Door) -> APIRouter:
    routes = APIRouter()

    @routes.get("/healthz")
    async def healthz() -> Health:
        return Health(door.config.store_mark)

    @routes.get("/readyz", response_model=Readiness, responses={503: {"model": Readiness, "description": "Not ready"}})
    async def readyz(request: Request) -> Response:
        told = await door.read(lambda tx: readiness(tx, door.config))
        if Scope.ADMIN not in request.state.principal.scopes:
            told = to_strangers(told)
        return JSONResponse(asdict(told), status_code=200 if told.ready else 503)

    @routes.get("/metrics", response_class=PlainTextResponse)
    async def scrape() -> Response:
        text = await door.read(lambda tx: metrics(tx, door.config))
        return Response(text, media_type="text/plain; version=0.0.4")

    return routes
