"""Rows of the tables of completions and feedback as records, and back."""

from __future__ import annotations

from typing import Any

from kto_ray.records.completions import Arm, Completion, ExternalRef
from kto_ray.records.feedback import Feedback, FeedbackKind, Held, Signal


def completion_of(row: Any) -> Completion:
    plain = {name: value for name, value in row.items() if not name.startswith("external_")}
    changed = {
        "arm": Arm(row["arm"]),
        "messages": tuple(row["messages"]),
        "tool_calls": tuple(row["tool_calls"] or ()),
        "external": external_of(row),
    }
    return Completion(**{**plain, **changed})


def columns_of(completion: Completion) -> dict[str, Any]:
    shared = {name: getattr(completion, name) for name in Completion.__slots__ if name != "external"}
    changed = {
        "arm": completion.arm.value,
        "messages": [dict(message) for message in completion.messages],
        "params": dict(completion.params),
        "tool_calls": [dict(call) for call in completion.tool_calls] or None,
    }
    return {**shared, **changed, **external_columns(completion.external)}


def feedback_of(row: Any) -> Feedback:
    plain = {name: value for name, value in row.items() if not name.startswith(("external_", "named_"))}
    changed = {
        "kind": FeedbackKind(row["kind"]),
        "completion_id": row["completion_id"] or row["named_completion"],
        "external": external_of(row),
        "reason_codes": tuple(row["reason_codes"]),
        "signal": row["signal"] and Signal(row["signal"]),
        "held": row["held"] and Held(row["held"]),
    }
    return Feedback(**{**plain, **changed})


def feedback_columns(event: Feedback, completion_id: str | None) -> dict[str, Any]:
    shared = {name: getattr(event, name) for name in Feedback.__slots__ if name != "external"}
    changed = {
        "kind": event.kind.value,
        "completion_id": completion_id,
        "named_completion": event.completion_id,
        "reason_codes": list(event.reason_codes),
        "tags": dict(event.tags),
        "signal": event.signal and event.signal.value,
        "held": event.held and event.held.value,
    }
    return {**shared, **changed, **external_columns(event.external)}


def external_of(row: Any) -> ExternalRef | None:
    if row["external_system"] is None:
        return None
    return ExternalRef(row["external_system"], row["external_conversation"], row["external_message"])


def external_columns(external: ExternalRef | None) -> dict[str, str | None]:
    return {
        "external_system": external.system if external else None,
        "external_conversation": external.conversation if external else None,
        "external_message": external.message if external else None,
    }
