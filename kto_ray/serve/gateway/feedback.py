"""POST and DELETE /v1/feedback: what users say of an answer, durable before it is acknowledged."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from kto_ray.serve.gateway.bodies import parse_feedback, parse_json
from kto_ray.serve.gateway.door import Door
from kto_ray.serve.gateway.errors import ApiError
from kto_ray.store import feedback
from kto_ray.store.feedback import Recorded

STATUS = {Recorded.RECORDED: 201, Recorded.PENDING: 202, Recorded.DUPLICATE: 200}


def router(door: Door) -> APIRouter:
    routes = APIRouter()

    @routes.post("/v1/feedback")
    async def give(request: Request) -> Response:
        event = parse_feedback(parse_json(await request.body()), request.headers.get("idempotency-key"))
        try:
            receipt = await door.write(lambda tx: feedback.record(tx, event))
        except feedback.KeyReused as error:
            raise ApiError(409, str(error), param="Idempotency-Key", code="idempotency_key_reused") from None
        return JSONResponse(asdict(receipt), status_code=STATUS[receipt.status])

    @routes.delete("/v1/feedback/{feedback_id}")
    async def withdraw(feedback_id: str) -> dict[str, Any]:
        if not await door.write(lambda tx: feedback.withdraw(tx, feedback_id, time.time())):
            raise ApiError(404, f"feedback {feedback_id!r} does not exist", param="feedback_id")
        return {"feedback_id": feedback_id, "status": "withdrawn"}

    return routes
