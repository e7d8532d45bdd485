"""What the client gets is what is logged: assemble a completion from a response, whole or streamed."""

from __future__ import annotations

import json
import time
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

    def add_response(self, response: Mapping[str, Any]) -> dict[str, Any]:
        """Take a whole response; returns it as the client gets it."""
        choice = response["choices"][0]
        self.text = choice["message"].get("content") or ""
        self.finish_reason = choice.get("finish_reason")
        self._usage(response.get("usage"))
        return self._sign(response)

    def add_chunk(self, chunk: Mapping[str, Any]) -> dict[str, Any]:
        """Take one chunk of a stream; returns it as the client gets it."""
        for choice in chunk["choices"]:
            piece = (choice.get("delta") or {}).get("content") or ""
            if piece and self.first_token_at is None:
                self.first_token_at = time.time()
            self.text += piece
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
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
        )

    def _usage(self, usage: Mapping[str, Any] | None) -> None:
        if usage:
            self.prompt_tokens = usage.get("prompt_tokens") or 0
            self.completion_tokens = usage.get("completion_tokens") or 0

    def _sign(self, response: Mapping[str, Any]) -> dict[str, Any]:
        """The id is the completion id, the model what was asked for, the fingerprint the version that answered."""
        return {**response, "id": self.id, "model": self.ask.model, "system_fingerprint": self.route.adapter}


def as_event(body: Mapping[str, Any]) -> str:
    """A server-sent event (WHATWG HTML, section 9.2.6) with one JSON document."""
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"
