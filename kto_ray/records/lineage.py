"""From a thumb to what it touched, and back: what is told of a completion, a user or an adapter version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class AnsweredBy:
    """Who gave some of the completions; `rollout` is "" and `status` None where no test was running."""

    adapter: str
    arm: str
    rollout: str
    status: str | None
    completions: int


@dataclass(frozen=True, slots=True)
class RowsIn:
    """How many rows of each split a snapshot holds, or held until it was purged (seconds since the epoch)."""

    snapshot: str
    rows: Mapping[str, int]
    purged_at: float | None


@dataclass(frozen=True, slots=True)
class Version:
    """An adapter version on one line."""

    adapter: str
    snapshot: str | None
    gate: str | None
    aliases: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RowLineage:
    """What a completion or a user touched. `unknown` are snapshots that were purged of others, and cannot be asked."""

    kind: Literal["completion", "user"]
    id: str
    completions: tuple[str, ...]
    feedback: tuple[str, ...]
    answered_by: tuple[AnsweredBy, ...]
    snapshots: tuple[RowsIn, ...]
    adapters: tuple[Version, ...]  # trained on these
    unknown: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class InTest:
    """A test in which an adapter was an arm."""

    rollout: str
    arm: Literal["champion", "challenger"]
    status: str


@dataclass(frozen=True, slots=True)
class AdapterLineage(Version):
    """Where an adapter comes from and what came of it; `completions` is how many it gave."""

    kind: Literal["adapter"]
    id: str
    purged_at: float | None  # of its snapshot
    reference: str
    ancestors: tuple[str, ...]  # nearest first
    children: tuple[str, ...]
    rounds: tuple[int, ...]
    rollouts: tuple[InTest, ...]
    completions: int
