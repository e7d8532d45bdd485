"""POST and DELETE /v1/feedback: what users say of an answer, durable before it is acknowledged."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from kto_ray.serve.gateway.bodies import FeedbackBody, parse_feedback, read_json
from kto_ray.serve.gateway.document import IDEMPOTENT, body_of
from kto_ray.serve.gateway.door import Door
from kto_ray.serve.gateway.errors import ApiError
from kto_ray.serve.gateway.guard import user_of
from kto_ray.store import feedback
from kto_ray.store.feedback import Receipt, Recorded

STATUS = {Recorded.RECORDED: 201, Recorded.PENDING: 202, Recorded.DUPLICATE: 200}


@dataclass(frozen=True, slots=True)
class Withdrawn:
    feedback_id: str
    status: Literal["withdrawn"] = "withdrawn"


def router(door: Door) -> APIRouter:
    routes = APIRouter()

    @routes.post(
        "/v1/feedback",
        response_model=Receipt,
        status_code=STATUS[Recorded.RECORDED],
        responses={
            STATUS[Recorded.DUPLICATE]: {"model": Receipt, "description": "The same key and body came before"},
            STATUS[Recorded.PENDING]: {"model": Receipt, "description": "It waits for its completion"},
        },
        openapi_extra=body_of(FeedbackBody.__name__, *IDEMPOTENT),
    )
    async def give(request: Request) -> Response:
        event = parse_feedback(await read_json(request), request.headers)
        event = replace(event, user=user_of(request, event.user))
        try:
            receipt = await door.write(lambda tx: feedback.record(tx, event))
        except feedback.KeyReused as error:
            raise ApiError(409, str(error), param="Idempotency-Key", code="idempotency_key_reused") from None
        return JSONResponse(asdict(receipt), status_code=STATUS[receipt.status])

    @routes.delete("/v1/feedback/{feedback_id}")
    async def withdraw(feedback_id: str) -> Withdrawn:
        if not await door.write(lambda tx: feedback.withdraw(tx, feedback_id, time.time())):
            raise ApiError(404, f"feedback {feedback_id!r} does not exist", param="feedback_id")
        return Withdrawn(feedback_id)

    return routes
