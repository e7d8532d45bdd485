"""POST /v1/feedback: what it takes, and the event that it is."""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from kto_ray.feedback.seen import seen, with_line_feeds
from kto_ray.records.completions import ExternalRef
from kto_ray.records.feedback import Feedback, FeedbackKind, Signal
from kto_ray.serve.gateway.bodies import limits
from kto_ray.serve.gateway.bodies.chat import DEFAULT_SYSTEM
from kto_ray.serve.gateway.bodies.headers import IDEMPOTENCY_KEY, header
from kto_ray.serve.gateway.bodies.schema import Body, Name, NameOrEmpty, checked, rule
from kto_ray.serve.gateway.errors import ApiError, short


class External(Body):
    system: Annotated[str, Field(min_length=1, max_length=limits.SYSTEM)] = DEFAULT_SYSTEM
    conversation: Name
    message: Name | None = Field(None, description="absent: the whole conversation is meant")


class FeedbackBody(Body):
    """POST /v1/feedback."""

    completion_id: Name | None = None
    external: External | None = None
    kind: str = Field(json_schema_extra={"enum": list(FeedbackKind)})
    value: bool | None = Field(None, description="of a thumb: true is up")
    text: str | None = Field(None, max_length=limits.TEXT, description="of an edit: the answer as it should have been")
    signal: str | None = Field(None, description="of a signal", json_schema_extra={"enum": [*Signal, None]})
    reason_codes: list[Name] | None = Field(None, max_length=limits.REASONS)
    comment: str | None = Field(None, max_length=limits.COMMENT)
    user: NameOrEmpty | None = None
    tags: dict[str, Any] | None = Field(None, description=f"at most {limits.TAGS_CHARACTERS} characters of JSON")

    @field_validator("text")
    @classmethod
    def _by_any_system(cls, text: str | None) -> str | None:
        """An edit typed on Windows is the same edit: the policy ends its lines by line feeds."""
        return None if text is None else with_line_feeds(text)

    @model_validator(mode="after")
    def _whole(self) -> FeedbackBody:
        kinds = [kind.value for kind in FeedbackKind]
        if self.kind not in kinds:
            raise rule("kind", f"kind must be one of {', '.join(kinds)}, got {short(self.kind)}")
        if (self.completion_id is None) == (self.external is None):
            words = "give either completion_id or external, to say which completion is meant"
            raise rule("completion_id", words)
        if self.kind == "thumb" and self.value is None:
            raise rule("value", "a thumb needs value: true (up) or false (down)")
        if self.kind == "edit" and not seen(self.text or ""):
            raise rule("text", "an edit needs text: the answer as it should have been")
        if self.kind == "edit" and self.external is not None and self.external.message is None:
            raise rule("external.message", "an edit speaks of one answer, so external needs message")
        if self.kind == "comment" and not seen(self.comment or self.text or ""):
            raise rule("comment", "a comment needs comment: what the user said")
        if (self.kind == "signal") != (self.signal is not None) or self.signal not in (None, *Signal):
            raise rule("signal", f"a signal, and nothing else, needs signal: one of {', '.join(Signal)}")
        return self


def parse_feedback(body: dict[str, Any], headers: Mapping[str, str]) -> Feedback:
    """A feedback event from a request.

    Raises:
        ApiError: 400 that names the field or header.
    """
    parsed = checked(FeedbackBody, body)
    key = header(headers, IDEMPOTENCY_KEY)
    if key is None and IDEMPOTENCY_KEY.lower() in headers:
        raise ApiError(400, f"{IDEMPOTENCY_KEY} must have 1 to {limits.NAME} characters, got none", IDEMPOTENCY_KEY)
    tags = parsed.tags or {}
    if (length := len(json.dumps(tags, ensure_ascii=False))) > limits.TAGS_CHARACTERS:
        words = f"tags must have at most {limits.TAGS_CHARACTERS} characters as JSON, got {length}; shorten them"
        raise ApiError(400, words, "tags")
    canonical = json.dumps(parsed.model_dump(exclude_none=True), sort_keys=True, ensure_ascii=False)
    return Feedback(
        id=f"fb-{uuid.uuid4().hex}",
        created_at=time.time(),
        kind=FeedbackKind(parsed.kind),
        completion_id=parsed.completion_id,
        user=parsed.user or None,
        value=parsed.value if parsed.kind == "thumb" else None,
        text=parsed.text,
        external=ExternalRef(**parsed.external.model_dump()) if parsed.external else None,
        reason_codes=tuple(parsed.reason_codes or ()),
        comment=parsed.comment,
        signal=Signal(parsed.signal) if parsed.signal else None,
        tags=tags,
        idempotency_key=key,
        body_hash=hashlib.sha256(canonical.encode()).hexdigest(),
    )
