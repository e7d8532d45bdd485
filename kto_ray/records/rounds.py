"""One turn of the loop: what a round holds depends on where it stands, and its type says so."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar


class Stage(enum.StrEnum):
    """A round walks down this list and ends in DONE with an outcome."""

    SNAPSHOT = "snapshot"
    TRAIN = "train"
    LOAD = "load"
    GATE = "gate"
    ROLLOUT = "rollout"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Sealing:
    """The feedback is frozen into a snapshot."""

    stage: ClassVar[Stage] = Stage.SNAPSHOT


@dataclass(frozen=True, slots=True)
class Training:
    stage: ClassVar[Stage] = Stage.TRAIN
    snapshot: str


@dataclass(frozen=True, slots=True)
class _WithCandidate:
    snapshot: str
    adapter: str


@dataclass(frozen=True, slots=True)
class Loading(_WithCandidate):
    """The replicas load and probe the candidate."""

    stage: ClassVar[Stage] = Stage.LOAD


@dataclass(frozen=True, slots=True)
class Judging(_WithCandidate):
    """The gate looks at the candidate."""

    stage: ClassVar[Stage] = Stage.GATE


@dataclass(frozen=True, slots=True)
class OnTrial(_WithCandidate):
    """Users decide, in an A/B test."""

    stage: ClassVar[Stage] = Stage.ROLLOUT
    rollout: str


@dataclass(frozen=True, slots=True)
class Ended:
    """`snapshot`, `adapter` and `rollout` are None where the round ended before it had one."""

    stage: ClassVar[Stage] = Stage.DONE
    outcome: Outcome
    reason: str | None
    at: float
    snapshot: str | None = None
    adapter: str | None = None
    rollout: str | None = None


State = Sealing | Training | Loading | Judging | OnTrial | Ended


@dataclass(frozen=True, slots=True)
class Round:
    """`stage_s` holds the seconds that each ended stage took, `failure` why the present stage's last attempt failed."""

    id: int
    state: State
    started_at: float
    stage_started_at: float
    came_before: int = 0  # labels that had come when it began (`store.tallies`): those beyond are for the next round
    attempts: int = 0  # of the present stage that failed
    failure: str | None = None
    stage_s: Mapping[str, float] = field(default_factory=dict)

    @property
    def stage(self) -> Stage:
        return self.state.stage

    @property
    def in_progress(self) -> bool:
        return not isinstance(self.state, Ended)

    @property
    def in_words(self) -> str:
        """How it ended."""
        assert isinstance(self.state, Ended)
        return f"round {self.id} ends: {self.state.outcome} ({self.state.reason})"

    @property
    def run(self) -> str:
        """The name of its training run."""
        return f"round-{self.id}"

    def to(self, state: State, now: float) -> Round:
        """The round in its next state, the clock and the attempts of the stage begun anew."""
        spent = {**self.stage_s, self.stage.value: now - self.stage_started_at}
        return replace(self, state=state, stage_started_at=now, attempts=0, failure=None, stage_s=spent)

    def again(self, failure: str) -> Round:
        """The round after a failed attempt of its stage."""
        return replace(self, attempts=self.attempts + 1, failure=failure)

    def waits(self, failure: str) -> Round:
        """The round whose stage begins again, by no fault of its own."""
        return replace(self, failure=failure)

    def ended(self, outcome: Outcome, reason: str | None, now: float) -> Round:
        held = {name: getattr(self.state, name, None) for name in ("snapshot", "adapter", "rollout")}
        return self.to(Ended(outcome, reason, now, **held), now)


class Outcome(enum.StrEnum):
    PROMOTED = "promoted"
    REJECTED = "rejected"
    INCONCLUSIVE = "inconclusive"
    ABORTED = "aborted"
    FAILED = "failed"
