"""An A/B test: where it stands, its counts and its looks."""

from __future__ import annotations

import enum
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RolloutState:
    """Where an A/B test stands. `stage` indexes the configured stages; `weight` is the challenger's share of users."""

    id: str
    champion: str
    challenger: str
    salt: str
    stage: int
    weight: float
    status: RolloutStatus
    started_at: float
    stage_started_at: float
    ended_at: float | None = None
    reason: str | None = None

    @property
    def live(self) -> bool:
        """Running or paused: users are split."""
        return self.status in LIVE


@dataclass(frozen=True, slots=True)
class ArmCount:
    """Labels of one arm: users who judged, and how many of their first labels were up."""

    users: int
    up: int


@dataclass(frozen=True, slots=True)
class Look:
    """The counts of a test's stage at one time, and the interval [low, high] of p_challenger - p_champion then."""

    rollout: str
    at: float
    stage: int
    n_champion: int
    up_champion: int
    n_challenger: int
    up_challenger: int
    low: float
    high: float

    @property
    def arms(self) -> tuple[ArmCount, ArmCount]:
        """(champion, challenger)."""
        return ArmCount(self.n_champion, self.up_champion), ArmCount(self.n_challenger, self.up_challenger)

    @property
    def saw(self) -> tuple[int, tuple[ArmCount, ArmCount]]:
        return self.stage, self.arms


class RolloutStatus(enum.StrEnum):
    RUNNING = "running"
    PAUSED = "paused"
    PROMOTED = "promoted"
    ABORTED = "aborted"


LIVE = (RolloutStatus.RUNNING, RolloutStatus.PAUSED)  # users are split
