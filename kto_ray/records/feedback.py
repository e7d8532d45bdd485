"""What users said of an answer."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from kto_ray.records.completions import ExternalRef, Json


@dataclass(frozen=True, slots=True)
class Feedback:
    """One event of the append-only feedback log. `value` belongs to a thumb, `text` to an edit."""

    id: str
    created_at: float
    kind: FeedbackKind
    completion_id: str | None
    user: str | None = None
    value: bool | None = None
    text: str | None = None
    external: ExternalRef | None = None
    reason_codes: tuple[str, ...] = ()
    comment: str | None = None
    tags: Json = field(default_factory=dict)
    idempotency_key: str | None = None
    body_hash: str | None = None
    withdrawn_at: float | None = None


class FeedbackKind(enum.StrEnum):
    THUMB = "thumb"
    EDIT = "edit"
    COMMENT = "comment"
