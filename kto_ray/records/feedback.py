"""What users said of an answer."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from kto_ray.records.completions import ExternalRef, Json


@dataclass(frozen=True, slots=True)
class Feedback:
    """One event of the append-only log. `value` belongs to a thumb, `text` to an edit, `signal` to a signal."""

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
    principal: str | None = None  # whose key sent it; None: no keys are in use
    key_owner: str = ""  # whose idempotency_key it is
    reviewer: bool = False  # from a key that may judge any answer
    signal: Signal | None = None
    parent: str | None = None  # the event on a whole conversation that this one was spread from
    held: Held | None = None
    held_why: str | None = None
    seq: int | None = field(default=None, compare=False)  # its place in the order of the store; None: not stored yet


class FeedbackKind(enum.StrEnum):
    THUMB = "thumb"
    EDIT = "edit"
    COMMENT = "comment"
    SIGNAL = "signal"  # what a user did rather than said; no label unless the config says so


class Signal(enum.StrEnum):
    REGENERATED = "regenerated"
    COPIED = "copied"
    STOPPED = "stopped"
    DISAGREED = "disagreed"  # the next turn


class Held(enum.StrEnum):
    """Where an event stands that quarantine has caught. Only a released one counts."""

    HELD = "held"
    RELEASED = "released"
    DROPPED = "dropped"
