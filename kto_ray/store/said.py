"""What of the log makes labels: what was said of answers, as it is, or as it was at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import sqlalchemy as sa

from kto_ray.records.feedback import Feedback, FeedbackKind, Held, Signal
from kto_ray.store.among import among
from kto_ray.store.mapping import external_of
from kto_ray.store.schema import feedback


def said(tx: sa.Connection, ids: Sequence[str]) -> dict[str, list[Feedback]]:
    """By completion."""
    names = ("id", "seq", "created_at", "kind", "completion_id", "user", "value", "text", "withdrawn_at")
    refs = ("external_system", "external_conversation", "external_message")
    columns = (feedback.c[name] for name in (*names, "principal", "reviewer", "signal", "held", *refs))
    events: dict[str, list[Feedback]] = {}
    for row in tx.execute(sa.select(*columns).where(among(tx, feedback.c.completion_id, ids))).mappings():
        changed = {
            "kind": FeedbackKind(row["kind"]),
            "signal": row["signal"] and Signal(row["signal"]),
            "held": row["held"] and Held(row["held"]),
            "external": external_of(row),
        }
        plain = {name: value for name, value in row.items() if name not in refs}
        events.setdefault(row["completion_id"], []).append(Feedback(**{**plain, **changed}))
    return events


def as_of(events: Iterable[Feedback], at: float) -> list[Feedback]:
    """What stood at a time, in seconds since the epoch. What quarantine made of it is of today."""
    come = (event for event in events if event.created_at <= at)
    return [replace(e, withdrawn_at=None) if e.withdrawn_at is not None and e.withdrawn_at > at else e for e in come]
