"""POST /v1/chat/completions: an adapter answers, and the completion is durable before the client sees its end."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from kto_ray.serve.gateway import whose
from kto_ray.serve.gateway.answer import Answer, EventStream, answer_to
from kto_ray.serve.gateway.arriving import read_body
from kto_ray.serve.gateway.bodies import ChatBody, parse_chat
from kto_ray.serve.gateway.capture import DONE, as_event
from kto_ray.serve.gateway.document import NAMED, body_of
from kto_ray.serve.gateway.door import Door
from kto_ray.serve.gateway.errors import ApiError, ErrorBody, unforeseen

ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "OpenAI's chat completion, whole or as a stream of its chunks; `system_fingerprint` is the "
        "version that answered, `id` what feedback names; `kto_ray.ask` where it asks its user for a thumb",
        "content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}},
        "headers": {"x-kto-completion-id": {"description": "what feedback names", "schema": {"type": "string"}}},
    }
}


def router(door: Door) -> APIRouter:
    routes = APIRouter()

    @routes.post("/v1/chat/completions", responses=ANSWERS, openapi_extra=body_of(ChatBody.__name__, *NAMED))
    async def chat(request: Request) -> Response:
        ask = parse_chat(await read_body(request, whose.principal_of(request).name), request.headers, door.config)
        answer = await answer_to(door, request, ask, "chatcmpl-")
        if ask.stream:
            await answer.open()
            return EventStream(answer, _events(answer))
        return JSONResponse(await answer.whole(), headers=answer.headers)

    @routes.post("/v1/completions", status_code=404, response_model=ErrorBody)
    async def prompt() -> Response:
        words = "only chats are served here; POST /v1/chat/completions with messages instead of a prompt"
        raise ApiError(404, words, code="unsupported_endpoint")

    return routes


async def _events(answer: Answer) -> AsyncGenerator[str, None]:
    try:
        async with aclosing(answer.chunks()) as chunks:
            async for chunk in chunks:
                if chunk["choices"] or answer.capture.ask.wants_usage:
                    yield as_event(chunk)
        yield DONE
    except ApiError as error:
        yield as_event(error.body)
    except Exception as error:  # the status is long sent: here, the last resort can still tell
        yield as_event(unforeseen(error).body)
