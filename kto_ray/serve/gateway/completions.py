"""GET /v1/completions/{id}: the logged record, its labels, and all that was said of it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from fastapi import APIRouter

from kto_ray.serve.gateway.door import Door
from kto_ray.serve.gateway.errors import ApiError
from kto_ray.store import completions, feedback, labels


def router(door: Door) -> APIRouter:
    routes = APIRouter()

    @routes.get("/v1/completions/{completion_id}")
    async def completion(completion_id: str) -> dict[str, Any]:
        found = await door.read(lambda tx: _record(tx, completion_id))
        if found is None:
            raise ApiError(404, f"completion {completion_id!r} does not exist", param="completion_id")
        return found

    return routes


def _record(tx: sa.Connection, completion_id: str) -> dict[str, Any] | None:
    found = completions.get(tx, completion_id)
    if found is None:
        return None
    said = [asdict(event) for event in feedback.events(tx, completion_id)]
    return {**asdict(found), "feedback": said, "labels": [asdict(label) for label in labels.of(tx, completion_id)]}
