"""GET /healthz, /readyz and /metrics: what the platform asks."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from kto_ray.serve.gateway.door import Door
from kto_ray.status.metrics import metrics
from kto_ray.status.readiness import readiness


def router(door: Door) -> APIRouter:
    routes = APIRouter()

    @routes.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "alive", "store": door.config.store_mark}

    @routes.get("/readyz")
    async def readyz() -> Response:
        told = await door.read(lambda tx: readiness(tx, door.config))
        return JSONResponse(asdict(told), status_code=200 if told.ready else 503)

    @routes.get("/metrics")
    async def scrape() -> Response:
        text = await door.read(lambda tx: metrics(tx, door.config))
        return Response(text, media_type="text/plain; version=0.0.4")

    return routes
