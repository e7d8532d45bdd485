"""POST /v1/responses: a chat in the shapes of OpenAI's Responses API, whole or as its events; nothing is remembered."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from kto_ray.serve.gateway import whose
from kto_ray.serve.gateway.answer import Answer, EventStream, answer_to
from kto_ray.serve.gateway.arriving import read_body
from kto_ray.serve.gateway.bodies import ResponsesBody, parse_responses
from kto_ray.serve.gateway.capture import Capture, as_event
from kto_ray.serve.gateway.document import NAMED, body_of
from kto_ray.serve.gateway.door import Door
from kto_ray.serve.gateway.errors import ApiError, short, unforeseen

ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "OpenAI's response, whole or as its events; `id` is what feedback names",
        "content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}},
        "headers": {"x-kto-completion-id": {"description": "what feedback names", "schema": {"type": "string"}}},
    }
}

INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}  # what an end is called there


def router(door: Door) -> APIRouter:
    routes = APIRouter()

    @routes.post("/v1/responses", responses=ANSWERS, openapi_extra=body_of(ResponsesBody.__name__, *NAMED))
    async def respond(request: Request) -> Response:
        ask = parse_responses(await read_body(request, whose.principal_of(request).name), request.headers, door.config)
        answer = await answer_to(door, request, ask.chat, "resp_")
        if ask.chat.stream:
            await answer.open()
            return EventStream(answer, _events(answer, Reply(answer.capture, ask.said)))
        await answer.whole()
        told = Reply(answer.capture, ask.said).whole()
        return JSONResponse(told, headers=answer.headers)

    return routes


async def _events(answer: Answer, reply: Reply) -> AsyncGenerator[str, None]:
    try:
        for event in reply.begin():
            yield as_event(event, event["type"])
        async with aclosing(answer.chunks()) as chunks:
            async for chunk in chunks:
                for event in reply.add(chunk):
                    yield as_event(event, event["type"])
        for event in reply.end():
            yield as_event(event, event["type"])
    except ApiError as error:
        yield as_event(reply.broken(error), "error")
    except Exception as error:  # the status is long sent: here, the last resort can still tell
        yield as_event(reply.broken(unforeseen(error)), "error")


class Reply:
    """A response in the making. Its items come one after another: text, then the calls of functions."""

    def __init__(self, capture: Capture, said: dict[str, Any]) -> None:
        self._capture, self._said = capture, said
        self._name = capture.id.removeprefix("resp_")
        self._sequence = 0
        self._items: list[dict[str, Any]] = []
        self._open = False  # the last item is still growing

    def whole(self) -> dict[str, Any]:
        """The response of a capture that is complete."""
        if self._capture.text or not self._capture.tool_calls:
            self._items.append(self._message(self._capture.text))
        for call in self._capture.tool_calls:
            self._items.append(self._call(call["id"], call["function"]["name"], call["function"]["arguments"]))
        return self._ended()

    def begin(self) -> Iterator[dict[str, Any]]:
        for kind in ("response.created", "response.in_progress"):
            yield self._event(kind, response=self._response("in_progress"))

    def add(self, chunk: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """What one chunk of a chat is in events."""
        for choice in chunk["choices"]:
            delta = choice.get("delta") or {}
            if text := delta.get("content"):
                yield from self._add_text(text)
            for piece in delta.get("tool_calls") or ():
                yield from self._add_call(piece)

    def end(self) -> Iterator[dict[str, Any]]:
        if not self._items:  # the policy said nothing: that is a text, too
            yield from self._begin_item(self._message(""))
        yield from self._end_item()
        told = self._ended()
        yield self._event(f"response.{told['status']}", response=told)

    def broken(self, error: ApiError) -> dict[str, Any]:
        """The contract's shape, and beside it the fields of OpenAI's error event."""
        told = error.body["error"]
        beside = {"code": told["code"], "message": told["message"], "param": told["param"]}
        return self._event("error", **beside, error=told)

    def _add_text(self, text: str) -> Iterator[dict[str, Any]]:
        if not self._open or self._items[-1]["type"] != "message":
            yield from self._begin_item(self._message(""))
        item = self._items[-1]
        item["content"][0]["text"] += text
        yield self._of_text("response.output_text.delta", delta=text, logprobs=[])

    def _add_call(self, piece: dict[str, Any]) -> Iterator[dict[str, Any]]:
        told = piece.get("function") or {}
        if piece.get("id"):
            yield from self._begin_item(self._call(piece["id"], told.get("name") or "", ""))
        if arguments := told.get("arguments"):
            self._items[-1]["arguments"] += arguments
            yield self._of_item("response.function_call_arguments.delta", delta=arguments)

    def _begin_item(self, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield from self._end_item()
        self._items.append(item)
        self._open = True
        empty = {**item, "content": []} if item["type"] == "message" else item
        yield self._event(
            "response.output_item.added", output_index=self._index, item={**empty, "status": "in_progress"}
        )
        if item["type"] == "message":
            yield self._of_text("response.content_part.added", part=dict(item["content"][0]))

    def _end_item(self) -> Iterator[dict[str, Any]]:
        if not self._open:
            return
        self._open = False
        item = self._items[-1]
        if item["type"] == "message":
            [part] = item["content"]
            yield self._of_text("response.output_text.done", text=part["text"], logprobs=[])
            yield self._of_text("response.content_part.done", part=part)
        else:
            told = {"name": item["name"], "arguments": item["arguments"]}
            yield self._of_item("response.function_call_arguments.done", **told)
        yield self._event("response.output_item.done", output_index=self._index, item=item)

    @property
    def _index(self) -> int:
        return len(self._items) - 1

    def _event(self, kind: str, **told: Any) -> dict[str, Any]:
        self._sequence += 1
        return {"type": kind, "sequence_number": self._sequence - 1, **told}

    def _of_item(self, kind: str, **told: Any) -> dict[str, Any]:
        return self._event(kind, item_id=self._items[-1]["id"], output_index=self._index, **told)

    def _of_text(self, kind: str, **told: Any) -> dict[str, Any]:
        return self._of_item(kind, content_index=0, **told)

    def _message(self, text: str) -> dict[str, Any]:
        part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
        name = f"msg_{self._name}_{len(self._items)}"
        return {"id": name, "type": "message", "role": "assistant", "status": "completed", "content": [part]}

    def _call(self, call_id: str, name: str, arguments: str) -> dict[str, Any]:
        told = {"call_id": call_id, "name": name, "arguments": arguments, "status": "completed"}
        return {"id": f"fc_{self._name}_{len(self._items)}", "type": "function_call", **told}

    def _ended(self) -> dict[str, Any]:
        capture = self._capture
        cut = INCOMPLETE.get(capture.finish_reason or "")
        told = self._response("incomplete" if cut else "completed" if capture.ended else "failed")
        usage = {
            "input_tokens": capture.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": capture.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": capture.prompt_tokens + capture.completion_tokens,
        }
        if told["status"] == "failed":
            words = f"the engine ended the answer by {short(capture.finish_reason)}; ask again"
            told["error"] = {"code": "server_error", "message": words}
        beside = {"usage": usage, "incomplete_details": cut and {"reason": cut}, **capture.asking}
        return {**told, "output": self._items, **beside}

    def _response(self, status: str) -> dict[str, Any]:
        """OpenAI's fields; what the client said of them, or what holds without."""
        capture, said = self._capture, self._said
        return {
            "id": capture.id,
            "object": "response",
            "created_at": int(capture.started_at),
            "status": status,
            "error": None,
            "incomplete_details": None,
            "metadata": {},
            "output": [],
            "previous_response_id": None,
            "store": False,
            "instructions": said.get("instructions"),
            "temperature": said.get("temperature"),
            "top_p": said.get("top_p"),
            "max_output_tokens": capture.ask.params["max_completion_tokens"],
            "tools": [{"parameters": None, "strict": None, **tool} for tool in said.get("tools", ())],
            "tool_choice": said.get("tool_choice", "auto"),
            "parallel_tool_calls": said.get("parallel_tool_calls", True),
            "reasoning": {"effort": said.get("reasoning", {}).get("effort"), "summary": None},
            "text": said.get("text") or {"format": {"type": "text"}},
            "truncation": "disabled",
            "usage": None,
            "user": said.get("user"),
            "safety_identifier": said.get("safety_identifier"),
            "model": capture.ask.model,
            "system_fingerprint": capture.route.adapter,
        }
