"""What the client gets is what is logged: assemble a completion from a response, whole or streamed."""

from __future__ import annotations

import json
import time
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kto_ray.records.completions import Completion
from kto_ray.rollout.assignment import Route
from kto_ray.serve.gateway.bodies import ChatAsk

DONE = "data: [DONE]\n\n"


@dataclass
class Capture:
    """One answer in the making."""

    id: str
    ask: ChatAsk
    route: Route
    started_at: float = field(default_factory=time.time)
    text: str = ""
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_token_at: float | None = None
    stop_reason: str | None = None
    reasoning: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    prompt_ids: list[int] | None = None
    answer_ids: list[int] | None = None
    base: str | None = None  # mark of the model that answers

    def add_response(self, response: Mapping[str, Any]) -> dict[str, Any]:
        """Take a whole response; returns it as the client gets it."""
        choice = response["choices"][0]
        message = choice["message"]
        self.text = message.get("content") or ""
        self.reasoning = message.get("reasoning") or ""
        self.tool_calls = list(message.get("tool_calls") or ())
        self._read(response, choice)
        return self._sign(response)

    def add_chunk(self, chunk: Mapping[str, Any]) -> dict[str, Any]:
        """Take one chunk of a stream; returns it as the client gets it."""
        for choice in chunk["choices"]:
            delta = choice.get("delta") or {}
            piece, thought, calls = (
                delta.get("content") or "",
                delta.get("reasoning") or "",
                delta.get("tool_calls") or (),
            )
            if (piece or thought or calls) and self.first_token_at is None:
                self.first_token_at = time.time()
            self.text += piece
            self.reasoning += thought
            for call in calls:
                self._add_call(call)
            self._read(chunk, choice)
        self._usage(chunk.get("usage"))
        return self._sign(chunk)

    def completion(self, status: str) -> Completion:
        return Completion(
            id=self.id,
            created_at=self.started_at,
            model=self.ask.model,
            adapter=self.route.adapter,
            arm=self.route.arm,
            messages=self.ask.messages,
            text=self.text,
            finish_reason=self.finish_reason,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            status=status,
            user=self.ask.user,
            rollout=self.route.rollout,
            task=self.ask.task,
            external=self.ask.external,
            params=self.ask.params,
            latency_s=time.time() - self.started_at,
            first_token_s=self.first_token_at - self.started_at if self.first_token_at else None,
            prompt_ids=_packed(self.prompt_ids),
            answer_ids=_packed(self.answer_ids),
            stop_reason=self.stop_reason,
            reasoning=self.reasoning or None,
            tool_calls=tuple(self.tool_calls),
            base=self.base,
        )

    def _read(self, response: Mapping[str, Any], choice: Mapping[str, Any]) -> None:
        self.finish_reason = choice.get("finish_reason") or self.finish_reason
        if choice.get("stop_reason") is not None:
            self.stop_reason = str(choice["stop_reason"])
        if response.get("prompt_token_ids") is not None:
            self.prompt_ids, self.answer_ids = response["prompt_token_ids"], []
        if self.answer_ids is not None:
            self.answer_ids += choice.get("token_ids") or ()
        self._usage(response.get("usage"))

    def _add_call(self, piece: Mapping[str, Any]) -> None:
        """A tool call comes in pieces, of which the first names it."""
        index = piece.get("index", 0)
        while len(self.tool_calls) <= index:
            self.tool_calls.append({"type": "function", "function": {"name": "", "arguments": ""}})
        call, function = self.tool_calls[index], piece.get("function") or {}
        call.update({name: piece[name] for name in ("id", "type") if piece.get(name)})
        for name in ("name", "arguments"):
            call["function"][name] += function.get(name) or ""

    def _usage(self, usage: Mapping[str, Any] | None) -> None:
        if usage:
            self.prompt_tokens = usage.get("prompt_tokens") or 0
            self.completion_tokens = usage.get("completion_tokens") or 0

    def _sign(self, response: Mapping[str, Any]) -> dict[str, Any]:
        """The id is the completion id, the model what was asked for, the fingerprint the version that answered. Token
        ids are the log's."""
        kept = {name: value for name, value in response.items() if name != "prompt_token_ids"}
        choices = [{n: v for n, v in choice.items() if n != "token_ids"} for choice in response["choices"]]
        own = {"id": self.id, "model": self.ask.model, "system_fingerprint": self.route.adapter}
        return {**kept, "choices": choices, **own}


def _packed(ids: list[int] | None) -> bytes | None:
    return None if ids is None else array("i", ids).tobytes()


def as_event(body: Mapping[str, Any]) -> str:
    """A server-sent event (WHATWG HTML, section 9.2.6) with one JSON document."""
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"
