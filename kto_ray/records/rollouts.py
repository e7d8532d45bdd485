"""An A/B test: where it stands, its counts and its looks."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class RolloutKind(enum.StrEnum):
    TEST = "test"  # whether a challenger becomes champion
    HOLDBACK = "holdback"  # whether a new champion stays
    BASE = "base"  # what the whole loop gains over the base model


@dataclass(frozen=True, slots=True)
class RolloutState:
    """Where an A/B test stands, or a holdback, whose challenger is the previous champion, or for ever the base model.
    `stage` indexes the stages of the rules, or counts the weeks; `weight` is the challenger's share of users, 0 of a
    test that has not begun, because a person is asked whether it should."""

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
    level: float = 0.0  # of false promotion, as the loop's budget gave it when the test began; 0 before there was one
    by_evidence: bool = True  # false where an operator ended it
    rules: Mapping[str, Any] | None = None  # the config section that it began with, and goes on under
    kind: RolloutKind = RolloutKind.TEST
    # Of a holdback, as `kto_ray.rollout.holdback` or `base` keeps it; of a test that asked before it began, the least
    # gain that it could show, as `machine.ask_first` does
    watch: Mapping[str, Any] | None = None
    status_at: float | None = None  # when it was last paused or resumed
    # On which criteria of this stage a person was asked, as `kto_ray.rollout.asked` puts it; who resumes has answered
    asked: tuple[str, ...] = ()

    @property
    def live(self) -> bool:
        """Running or paused: users are split, but of a test that has not begun."""
        return self.status in LIVE


@dataclass(frozen=True, slots=True)
class ArmCount:
    """Settled trials of one arm: users, and the sum of their outcomes, each the share of ups among what they judged."""

    users: int
    up: float


@dataclass(frozen=True, slots=True)
class Look:
    """What a test's stage had come to at one time: settled trials and users who got an answer, by arm, the interval
    [low, high] of p_challenger - p_champion, and what `kto_ray.rollout.evidence` makes of it, by name."""

    rollout: str
    at: float
    stage: int
    n_champion: int
    up_champion: float
    n_challenger: int
    up_challenger: float
    low: float
    high: float
    exposed_champion: int = 0
    exposed_challenger: int = 0
    evidence: Mapping[str, float] = field(default_factory=dict)

    @property
    def arms(self) -> tuple[ArmCount, ArmCount]:
        """(champion, challenger)."""
        return ArmCount(self.n_champion, self.up_champion), ArmCount(self.n_challenger, self.up_challenger)


@dataclass(frozen=True, slots=True)
class BudgetReset:
    """A person began the error budget of the loop's life anew. Tests that had begun by then are of the life before."""

    at: float
    who: str  # the principal's name
    why: str


class RolloutStatus(enum.StrEnum):
    RUNNING = "running"
    PAUSED = "paused"
    PROMOTED = "promoted"
    ABORTED = "aborted"


LIVE = (RolloutStatus.RUNNING, RolloutStatus.PAUSED)  # users are split
