"""POST and DELETE /v1/feedback: what users say of an answer, durable before it is acknowledged; and what of it is
held, and an operator decides on."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import sqlalchemy as sa
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from kto_ray.feedback.quarantine import Why
from kto_ray.feedback.tokens import Claim
from kto_ray.records.feedback import Feedback, Held
from kto_ray.serve.gateway import whose
from kto_ray.serve.gateway.arriving import read_body
from kto_ray.serve.gateway.bodies import FeedbackBody, parse_feedback
from kto_ray.serve.gateway.document import IDEMPOTENT, body_of
from kto_ray.serve.gateway.door import RETRY_AFTER, Door
from kto_ray.serve.gateway.errors import ApiError, short, shortened
from kto_ray.serve.gateway.guard import count_holder, user_of
from kto_ray.store import completions, feedback, quarantine
from kto_ray.store.recording import KeyReused, Receipt, Recorded, TooLong, TooManyEvents

SETTLED_S = 60.0  # after which an answer that a client has is in the store
STATUS = {Recorded.RECORDED: 201, Recorded.PENDING: 202, Recorded.DUPLICATE: 200}
OTHERWISE: dict[int | str, dict[str, Any]] = {  # as the contract tells it
    STATUS[Recorded.DUPLICATE]: {"model": Receipt, "description": "The same key and body came before"},
    STATUS[Recorded.PENDING]: {"model": Receipt, "description": "It waits for its completion or the store"},
}


@dataclass(frozen=True, slots=True)
class Withdrawn:
    feedback_id: str
    status: Literal["withdrawn"] = "withdrawn"


@dataclass(frozen=True, slots=True)
class HeldPage:
    """What waits for an operator: the oldest events, and how many of the newest wait for which reason."""

    events: tuple[Feedback, ...]
    by_reason: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Decided:
    feedback_id: str
    held: Held


def router(door: Door) -> APIRouter:
    routes = APIRouter()

    @routes.post(
        "/v1/feedback",
        response_model=Receipt,
        status_code=STATUS[Recorded.RECORDED],
        responses=OTHERWISE,
        openapi_extra=body_of(FeedbackBody.__name__, *IDEMPOTENT),
    )
    async def give(request: Request) -> Response:
        claim = whose.claim_of(door.config, door.view.keys, request)
        body = await read_body(request, whose.holder(claim) if claim else whose.principal_of(request).name)
        said = parse_feedback(whose.by_token(claim, body) if claim else body, request.headers)
        if claim is None:
            user_of(request, said.user)  # counted
        else:
            count_holder(request, whose.holder(claim), claim.principal)
            if await _gone(door, claim):
                raise ApiError(404, "that answer is gone", "completion_id", "completion_gone")
        event = whose.signed(door.config, said, whose.principal_of(request), claim)
        try:
            receipt = await door.record(event)
        except KeyReused as error:
            words = shortened(str(error), event.idempotency_key)
            raise ApiError(409, words, param="Idempotency-Key", code="idempotency_key_reused") from None
        except TooLong as error:
            raise ApiError(400, str(error), param=error.field) from None
        except TooManyEvents as error:
            raise ApiError(429, str(error), code="too_many_events") from None
        return JSONResponse(asdict(receipt), status_code=STATUS[receipt.status])

    @routes.delete("/v1/feedback/{feedback_id}")
    async def withdraw(request: Request, feedback_id: str) -> Withdrawn:
        principal = whose.principal_of(request)

        def change(tx: sa.Connection) -> bool:
            event = feedback.get(tx, feedback_id)
            if event is None or not whose.may_withdraw(principal, event):  # whose it is, is not told
                return False
            return feedback.withdraw(tx, feedback_id, time.time())

        behind = door.writer.spooled  # asked before: what drains meanwhile was not looked at
        if not await door.write(change):
            raise _not_here_yet(feedback_id, behind) if behind else _unknown(feedback_id)
        return Withdrawn(feedback_id)

    @routes.get("/v1/feedback/held")
    async def held(why: Why | None = None, user: str | None = None) -> HeldPage:
        return await door.read(lambda tx: HeldPage(tuple(quarantine.waiting(tx, why, user)), quarantine.by_reason(tx)))

    @routes.post("/v1/feedback/{feedback_id}/{decision}")
    async def decide(feedback_id: str, decision: Literal["release", "drop"]) -> Decided:
        act = quarantine.release if decision == "release" else quarantine.drop
        if not await door.write(lambda tx: act(tx, [feedback_id])):
            raise ApiError(409, f"feedback {short(feedback_id)} does not wait for that", param="feedback_id")
        return Decided(feedback_id, Held.RELEASED if decision == "release" else Held.DROPPED)

    return routes


async def _gone(door: Door, claim: Claim) -> bool:
    """Whether the answer of a token was erased, so that what is said of it is not kept: any other is in the store by
    now, unless that is away."""
    if time.time() - whose.carried_at(door.config, claim) < SETTLED_S or door.writer.spooled:
        return False
    try:
        return await door.read(lambda tx: completions.get(tx, claim.completion_id)) is None
    except (sa.exc.SQLAlchemyError, ApiError):
        return False


def _not_here_yet(feedback_id: str, behind: int) -> ApiError:
    words = (
        f"feedback {feedback_id!r} is not in the store, which {behind} acknowledged entries still wait for; try again"
    )
    return ApiError(503, words, param="feedback_id", code="busy", headers=RETRY_AFTER)


def _unknown(feedback_id: str) -> ApiError:
    return ApiError(404, f"feedback {short(feedback_id)} does not exist", param="feedback_id")
