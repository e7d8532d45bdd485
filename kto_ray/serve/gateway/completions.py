"""GET /v1/completions/{id}: the logged record, an old text from its archive, its labels, what was said of it, and the
adapter versions that learnt from that."""

from __future__ import annotations

import logging
from dataclasses import replace

from fastapi import APIRouter

from kto_ray.data import archive
from kto_ray.provenance.lineage import trained_on
from kto_ray.serve.gateway.door import Door
from kto_ray.serve.gateway.errors import ApiError, short
from kto_ray.status import completions
from kto_ray.store import archives

log = logging.getLogger(__name__)


def router(door: Door) -> APIRouter:
    routes = APIRouter()

    @routes.get("/v1/completions/{completion_id}")
    async def completion(completion_id: str) -> completions.ShownCompletion:
        found = await door.read(lambda tx: completions.one(tx, completion_id))
        if found is None:
            raise ApiError(404, f"completion {short(completion_id)} does not exist", param="completion_id")
        if found.feedback:  # of what nobody judged nothing was learnt
            found = replace(found, trained=await door.aside(lambda: _trained(door, completion_id)))
        if found.archive is None:
            return found
        kept = await door.read(lambda tx: archives.get(tx, found.archive))
        if kept is None:  # erased between the two reads
            raise ApiError(404, f"completion {short(completion_id)} does not exist", param="completion_id")
        whole = await door.aside(lambda: archive.restored(found, kept))
        return replace(whole, prompt_ids=None, answer_ids=None)  # as of one that is in the store

    return routes


def _trained(door: Door, completion_id: str) -> tuple[str, ...] | None:
    try:
        return trained_on(door.store, completion_id)
    except (OSError, ValueError) as error:
        log.warning("which adapters learnt from completion %s cannot be read: %s", completion_id, error)
        return None
