"""A conversation of a user, as far as its answers bear on who answers its next turn."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Conversation:
    """`began_at` is of its first answer (seconds since the epoch); all else is of its newest."""

    began_at: float
    adapter: str
    rollout: str | None = None  # that the answer counts for
    holdback: str | None = None
