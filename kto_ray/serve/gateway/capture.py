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
# What the engine tells us and not the client: of a response, and of its choice.
OURS = ("prompt_token_ids", "prompt_text", "prompt_logprobs", "kv_transfer_params", "ec_transfer_params", "metrics")
OURS_OF_CHOICE = ("token_ids", "routed_experts")
# How an answer ends by the policy's choice or at a limit. What else an engine says (abort, error, repetition,
# content_filter, or what a later one comes up with) broke it off.
ENDS = frozenset({"stop", "length", "tool_calls", "function_call"})


@dataclass
class Capture:
    """One answer in the making."""

    id: str
    ask: ChatAsk
    route: Route
    started_at: float = field(default_factory=time.time)
    text: str = ""
    reasoning: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: str | None = None
    prompt_ids: list[int] | None = None
    answer_ids: list[int] | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_token_at: float | None = None
    base: str | None = None  # mark of the model that answers
    principal: str | None = None  # who asks
    solicited: bool = False  # its end asks for a thumb

    def add_response(self, response: Mapping[str, Any]) -> dict[str, Any]:
        """Take a whole response; returns it as the client gets it."""
        [choice] = response["choices"]
        message = choice["message"]
        self.text = message.get("content") or ""
        self.reasoning = message.get("reasoning") or ""
        self.tool_calls = list(message.get("tool_calls") or ())
        self._tokens_and_end(response, choice)
        return self._sign(response)

    def add_chunk(self, chunk: Mapping[str, Any]) -> dict[str, Any]:
        """Take one chunk of a stream; returns it as the client gets it."""
        for choice in chunk["choices"]:
            self._add_delta(choice.get("delta") or {})
            self._tokens_and_end(chunk, choice)
        self._usage(chunk.get("usage"))
        return self._sign(chunk)

    @property
    def asking(self) -> dict[str, Any]:
        """The field of ours by which an answer that is at its end asks its user for a thumb; mostly there is none."""
        return {"kto_ray": {"ask": "thumb"}} if self.solicited and self.ended else {}

    @property
    def ended(self) -> bool:
        """Whether the answer came to an end that can be judged."""
        return self.finish_reason in ENDS

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
            holdback=self.route.holdback,
            solicited=self.solicited,
            task=self.ask.task,
            external=self.ask.external,
            params=self.ask.params,
            latency_s=time.time() - self.started_at,
            first_token_s=self.first_token_at - self.started_at if self.first_token_at else None,
            forced=self.ask.forced,
            prompt_ids=_packed(self.prompt_ids),
            answer_ids=_packed(self.answer_ids),
            stop_reason=self.stop_reason,
            reasoning=self.reasoning or None,
            tool_calls=tuple(self.tool_calls),
            base=self.base,
            principal=self.principal,
        )

    def _add_delta(self, delta: Mapping[str, Any]) -> None:
        text, reasoning, calls = delta.get("content") or "", delta.get("reasoning") or "", delta.get("tool_calls") or ()
        if self.first_token_at is None and (text or reasoning or calls):
            self.first_token_at = time.time()
        self.text += text
        self.reasoning += reasoning
        for piece in calls:
            self._add_call(piece)

    def _add_call(self, piece: Mapping[str, Any]) -> None:
        """A call comes in pieces: its id and name first, then its arguments bit by bit."""
        while len(self.tool_calls) <= piece["index"]:
            self.tool_calls.append({"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
        call, told = self.tool_calls[piece["index"]], piece.get("function") or {}
        call["id"] = piece.get("id") or call["id"]
        call["function"]["name"] = told.get("name") or call["function"]["name"]
        call["function"]["arguments"] += told.get("arguments") or ""

    def _tokens_and_end(self, response: Mapping[str, Any], choice: Mapping[str, Any]) -> None:
        if response.get("prompt_token_ids") is not None:
            self.prompt_ids, self.answer_ids = response["prompt_token_ids"], []
        if self.answer_ids is not None:
            self.answer_ids += choice.get("token_ids") or ()
        self.finish_reason = choice.get("finish_reason") or self.finish_reason
        if choice.get("stop_reason") is not None:
            self.stop_reason = str(choice["stop_reason"])
        self._usage(response.get("usage"))

    def _usage(self, usage: Mapping[str, Any] | None) -> None:
        if usage:
            self.prompt_tokens = usage.get("prompt_tokens") or 0
            self.completion_tokens = usage.get("completion_tokens") or 0

    def _sign(self, response: Mapping[str, Any]) -> dict[str, Any]:
        """The id is the completion id, the model what was asked for, the fingerprint the version that answered."""
        told = {key: value for key, value in response.items() if key not in OURS}
        told["choices"] = [{k: v for k, v in choice.items() if k not in OURS_OF_CHOICE} for choice in told["choices"]]
        ours = {"id": self.id, "model": self.ask.model, "system_fingerprint": self.route.adapter}
        return {**told, **ours, **self.asking}


def said(event: str) -> dict[str, Any]:
    """What the engine tells in one JSON document. A NUL, which no database stores and a model seldom means, becomes the
    replacement character: for the client, too, who gets what is logged."""
    told: dict[str, Any] = json.loads(event)
    return _without_nul(told) if "\\u0000" in event else told


def as_event(body: Mapping[str, Any], name: str | None = None) -> str:
    """A server-sent event (WHATWG HTML, section 9.2.6) with one JSON document, of a name where streams have several."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(body, ensure_ascii=False)}\n\n"


def _without_nul(told: Any) -> Any:
    if isinstance(told, dict):
        return {key: _without_nul(value) for key, value in told.items()}
    if isinstance(told, list):
        return [_without_nul(value) for value in told]
    return told.replace("\0", "\N{REPLACEMENT CHARACTER}") if isinstance(told, str) else told


def _packed(ids: list[int] | None) -> bytes | None:
    return None if ids is None else array("i", ids).tobytes()
