"""The HTTP contract's shapes: what a chat or feedback request must look like."""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kto_ray.records.completions import ExternalRef, Message
from kto_ray.records.feedback import Feedback, FeedbackKind, Signal
from kto_ray.serve.gateway.errors import ApiError

DEFAULT_SYSTEM = "default"
MAX_BODY_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ChatAsk:
    """What the gateway itself needs of a chat request; the rest goes to the engine as it came."""

    model: str
    messages: tuple[Message, ...]
    stream: bool
    wants_usage: bool  # the client asked for the usage chunk of a stream
    user: str | None
    task: str | None
    external: ExternalRef | None
    params: dict[str, Any]  # sampling parameters, logged with the completion


class ChatBody(BaseModel):
    """POST /v1/chat/completions: OpenAI's request, of which the gateway itself reads these; the engine reads the rest.

    For the OpenAPI document: `parse_chat` takes the body as it came.
    """

    model_config = ConfigDict(extra="allow")
    messages: list[dict[str, Any]] = Field(min_length=1)
    model: str = Field("policy", description="policy (A/B-routed), policy@champion, policy@base or a version")
    stream: bool | None = False
    user: str | None = Field(None, description="a stable, opaque id: makes the A/B test sticky")
    safety_identifier: str | None = Field(None, description="comes before user")
    n: Literal[1] | None = 1


def parse_json(raw: bytes) -> dict[str, Any]:
    if len(raw) > MAX_BODY_BYTES:
        raise ApiError(413, f"the body has {len(raw)} bytes, above the limit of {MAX_BODY_BYTES}; shorten it")
    try:
        body = json.loads(raw)
    except ValueError as error:  # bad UTF-8 too
        raise ApiError(400, f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(body, dict):
        raise ApiError(400, f"the body must be a JSON object, got {type(body).__name__}", code="invalid_json")
    return body


def parse_chat(body: dict[str, Any], headers: Mapping[str, str]) -> ChatAsk:
    """Check a chat request as far as the gateway relies on it; the engine checks the sampling parameters.

    Raises:
        ApiError: 400 that names the field.
    """
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise ApiError(400, f"messages must be a non-empty list of objects, got {_short(messages)}", param="messages")
    for i, message in enumerate(messages):
        if not isinstance(message.get("role"), str):
            raise ApiError(400, f"messages[{i}].role must be a string, got {_short(message.get('role'))}", "messages")
    if body.get("n") not in (None, 1):
        raise ApiError(400, f"n must be 1: each completion is judged by itself, got {_short(body['n'])}", param="n")
    options = body.get("stream_options") or {}
    return ChatAsk(
        model=_string(body, "model", "policy"),
        messages=tuple(messages),
        stream=_flag(body, "stream"),
        wants_usage=isinstance(options, dict) and bool(options.get("include_usage")),
        user=_string(body, "safety_identifier") or _string(body, "user") or headers.get("x-kto-user-id") or None,
        task=headers.get("x-kto-task") or None,
        external=_external(headers),
        params={k: v for k, v in body.items() if k not in ("messages", "model", "user", "safety_identifier", "stream")},
    )


class External(BaseModel):
    model_config = ConfigDict(extra="forbid")
    system: str = DEFAULT_SYSTEM
    conversation: str
    message: str | None = None  # None: the whole conversation is meant


class FeedbackBody(BaseModel):
    """POST /v1/feedback."""

    model_config = ConfigDict(extra="forbid", strict=True)
    completion_id: str | None = Field(None, min_length=1, max_length=255)
    external: External | None = None
    kind: str
    value: bool | None = None
    text: str | None = None
    signal: str | None = None
    reason_codes: list[str] = []
    comment: str | None = None
    user: str | None = Field(None, max_length=255)
    tags: dict[str, Any] = {}

    @model_validator(mode="after")
    def _whole(self) -> FeedbackBody:
        kinds = [kind.value for kind in FeedbackKind]
        if self.kind not in kinds:
            raise ValueError(f"kind must be one of {', '.join(kinds)}, got {self.kind!r}")
        if (self.completion_id is None) == (self.external is None):
            raise ValueError("give either completion_id or external, to say which completion is meant")
        if self.kind == "thumb" and self.value is None:
            raise ValueError("a thumb needs value: true (up) or false (down)")
        if self.kind == "edit" and not (self.text or "").strip():
            raise ValueError("an edit needs text: the answer as it should have been")
        if (self.kind == "signal") != (self.signal is not None) or self.signal not in (None, *Signal):
            raise ValueError(f"a signal, and nothing else, needs signal: one of {', '.join(Signal)}")
        if self.kind == "edit" and self.external is not None and self.external.message is None:
            raise ValueError("an edit speaks of one answer, so external needs message")
        if self.kind == "comment" and not (self.comment or self.text or "").strip():
            raise ValueError("a comment needs comment: what the user said")
        return self


def parse_feedback(body: dict[str, Any], idempotency_key: str | None) -> Feedback:
    """A feedback event from a request body.

    Raises:
        ApiError: 400 that names the field.
    """
    try:
        parsed = FeedbackBody.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"]) or None
        message = first["msg"].removeprefix("Value error, ")
        raise ApiError(400, f"{param}: {message}, got {_short(first['input'])}" if param else message, param) from None
    if idempotency_key is not None and not 0 < len(idempotency_key) <= 255:
        raise ApiError(400, f"Idempotency-Key must have 1 to 255 characters, got {len(idempotency_key)}")
    canonical = json.dumps(parsed.model_dump(), sort_keys=True, ensure_ascii=False)
    return Feedback(
        id=f"fb-{uuid.uuid4().hex}",
        created_at=time.time(),
        kind=FeedbackKind(parsed.kind),
        completion_id=parsed.completion_id,
        user=parsed.user,
        value=parsed.value if parsed.kind == "thumb" else None,
        signal=Signal(parsed.signal) if parsed.signal else None,
        text=parsed.text,
        external=ExternalRef(**parsed.external.model_dump()) if parsed.external else None,
        reason_codes=tuple(parsed.reason_codes),
        comment=parsed.comment,
        tags=parsed.tags,
        idempotency_key=idempotency_key,
        body_hash=hashlib.sha256(canonical.encode()).hexdigest(),
    )


def _external(headers: Mapping[str, str]) -> ExternalRef | None:
    chat, message = headers.get("x-kto-chat-id"), headers.get("x-kto-message-id")
    if not chat or not message:
        return None
    return ExternalRef(headers.get("x-kto-system", DEFAULT_SYSTEM), chat, message)


def _string(body: dict[str, Any], key: str, default: str | None = None) -> Any:
    value = body.get(key, default)
    if value is not None and not isinstance(value, str):
        raise ApiError(400, f"{key} must be a string, got {_short(value)}", param=key)
    return value if value != "" else default


def _flag(body: dict[str, Any], key: str) -> bool:
    value = body.get(key)
    if value is not None and not isinstance(value, bool):
        raise ApiError(400, f"{key} must be true or false, got {_short(value)}", param=key)
    return bool(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
