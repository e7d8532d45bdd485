"""DELETE /v1/users/{user} and /v1/completions/{id}: what is kept of a person, or of one answer, is erased."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter

from kto_ray.records.erasure import Erasure, Subject
from kto_ray.serve.gateway.door import Door
from kto_ray.serve.gateway.errors import ApiError
from kto_ray.store import Store
from kto_ray.store.custody import Busy


def router(door: Door) -> APIRouter:
    routes = APIRouter()

    @routes.delete("/v1/users/{user:path}")
    async def erase_user(user: str) -> Erasure:
        return await _erase(door, Subject("user", user))

    @routes.delete("/v1/completions/{completion_id}")
    async def erase_completion(completion_id: str) -> Erasure:
        return await _erase(door, Subject("completion", completion_id))

    return routes


async def _erase(door: Door, subject: Subject) -> Erasure:
    """To its end, also where the client leaves."""
    from kto_ray.provenance import erasure  # seals, with Ray Data, which other routes do without

    def run() -> Erasure:
        store = Store(door.config.database_url)  # of its own: it takes longer than a request may hold one
        try:
            return erasure.erase(store, door.config, subject)
        finally:
            store.close()

    try:
        return await asyncio.shield(asyncio.to_thread(run))
    except erasure.Unknown as error:
        raise ApiError(404, str(error), param=subject.kind) from None
    except Busy as error:
        raise ApiError(409, str(error), code="conflict") from None
