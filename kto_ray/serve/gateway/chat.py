"""POST /v1/chat/completions: an adapter answers, and the completion is durable before the client sees its end."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import uuid
from collections.abc import AsyncIterator
from typing import Any

import sqlalchemy as sa
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from ray.exceptions import RayActorError

from kto_ray.records.completions import Completion
from kto_ray.serve.gateway.bodies import ChatBody, parse_chat, parse_json
from kto_ray.serve.gateway.capture import DONE, Capture, as_event
from kto_ray.serve.gateway.document import body_of
from kto_ray.serve.gateway.door import Door
from kto_ray.serve.gateway.errors import ApiError
from kto_ray.store import Store, completions

log = logging.getLogger(__name__)

ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "OpenAI's chat completion, whole or as a stream of its chunks; `system_fingerprint` is the "
        "version that answered, `id` what feedback names",
        "content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}},
    }
}


def router(door: Door) -> APIRouter:
    routes = APIRouter()

    @routes.post("/v1/chat/completions", responses=ANSWERS, openapi_extra=body_of(ChatBody.__name__))
    async def chat(request: Request) -> Response:
        body = parse_json(await request.body())
        ask = parse_chat(body, request.headers)
        name = uuid.uuid4().hex
        route = door.view.route(ask.model, ask.user, door.config.model.served_name)
        capture = Capture(f"chatcmpl-{name}", ask, route, base=door.config.model.mark)
        upstream = {**body, "request_id": name, "return_token_ids": True}
        if ask.stream:
            upstream["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
        events = _answer(door, upstream, route.adapter)
        first = await anext(events)
        if not first.startswith("data:"):  # a whole response, or the engine's refusal
            signed = capture.add_response(_checked(first))
            await door.write(lambda tx: completions.insert(tx, capture.completion("complete")))
            return JSONResponse(signed, headers={"x-kto-completion-id": capture.id})
        return StreamingResponse(
            _stream(door, capture, first, events),
            media_type="text/event-stream",
            headers={"x-kto-completion-id": capture.id, "Cache-Control": "no-cache"},
        )

    return routes


async def _answer(door: Door, body: dict[str, Any], adapter: str) -> AsyncIterator[str]:
    """The policy's events. A replica that dies before its first event costs the client time, not an error."""
    while True:
        begun = False
        try:
            async for event in door.generate(body, adapter):
                begun = True
                yield event
            return
        except RayActorError as error:
            if begun:
                raise
            log.warning("a replica died before it answered, asking another: %s", error)


async def _stream(door: Door, capture: Capture, first: str, events: AsyncIterator[str]) -> AsyncIterator[str]:
    """Forward events; hold back the end (finish reason, usage, DONE) until the completion is durable."""
    held: list[str] = []
    status = "failed"
    try:
        async for event in _chain(first, events):
            if event == DONE:
                break
            chunk = json.loads(event.removeprefix("data:"))
            if "error" in chunk:
                yield as_event(chunk)
                return
            signed = capture.add_chunk(chunk)
            if capture.finish_reason is None:
                if _says(signed):
                    yield as_event(signed)
            elif signed["choices"] or capture.ask.wants_usage:
                held.append(as_event(signed))
        status = "complete"
        await door.write(lambda tx: completions.insert(tx, capture.completion("complete")))
        for event in held:
            yield event
        yield DONE
    except (asyncio.CancelledError, GeneratorExit):
        status = "aborted" if status == "failed" else status
        raise
    except (RayActorError, sa.exc.SQLAlchemyError) as error:
        log.error("completion %s broke off: %s", capture.id, error)
        yield as_event(ApiError(503, "the answer broke off; ask again").body)
    finally:
        if status != "complete":
            _insert_in_background(door.store, capture.completion(status))


def _says(chunk: dict[str, Any]) -> bool:
    """Some chunks told token ids alone, which no client waits for."""
    return any(choice.get("delta") for choice in chunk["choices"]) or not chunk["choices"]


def _insert_in_background(store: Store, completion: Completion) -> None:
    """A partial answer is worth a row, but nobody waits for it."""

    def insert() -> None:
        with store.write() as tx:
            completions.insert(tx, completion)

    threading.Thread(target=insert).start()


def _checked(text: str) -> dict[str, Any]:
    """A whole response of the policy, or its refusal as an ApiError."""
    response: dict[str, Any] = json.loads(text)
    if "error" in response:
        error = response["error"]
        status = error.get("code") if isinstance(error.get("code"), int) else 400
        raise ApiError(status, error["message"], param=error.get("param"), code=error.get("type"))
    return response


async def _chain(first: str, rest: AsyncIterator[str]) -> AsyncIterator[str]:
    yield first
    async for event in rest:
        yield event
