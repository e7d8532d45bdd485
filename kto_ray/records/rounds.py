"""One turn of the loop: what a round holds depends on where it stands, and its type says so."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from kto_ray.records.completions import Json
from kto_ray.records.evaluation import GateDecision


class Stage(enum.StrEnum):
    """A round walks down this list and ends in DONE with an outcome. Each of its candidates walks from TRAIN to GATE,
    and the best of those that passed goes on: loaded again where it was not the last, and approved where that is asked
    for."""

    SNAPSHOT = "snapshot"
    TRAIN = "train"
    LOAD = "load"
    GATE = "gate"
    RELOAD = "reload"
    APPROVAL = "approval"
    ROLLOUT = "rollout"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Tried:
    """What came of a candidate: the gate's decision, None where it failed before or after that; its gain in AUC over
    the champion `against`; and why, in words. `adapter` is None where none was made."""

    adapter: str | None
    decision: GateDecision | None
    reason: str
    gain: float | None = None
    against: str | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """An adapter that a round makes of its snapshot: `kto` is what is set over the config's section of that name. One
    without a name is trained by that section alone. `tried` is None until it has had its turn."""

    name: str = ""
    kto: Json = field(default_factory=dict)
    tried: Tried | None = None


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
class Reloading(_WithCandidate):
    """The replicas load the best candidate again, which made way for the others."""

    stage: ClassVar[Stage] = Stage.RELOAD


@dataclass(frozen=True, slots=True)
class Awaiting(_WithCandidate):
    """The best candidate waits for a person's approval."""

    stage: ClassVar[Stage] = Stage.APPROVAL


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


State = Sealing | Training | Loading | Judging | Reloading | Awaiting | OnTrial | Ended


@dataclass(frozen=True, slots=True)
class Round:
    """`stage_s` holds the seconds that each ended stage took, of all candidates together; `failure` says why the
    present stage's last attempt failed. `candidates` are those that it began with, in the order of their turns."""

    id: int
    state: State
    started_at: float
    stage_started_at: float
    came_before: int = 0  # labels that had come when it began (`store.tallies`): those beyond are for the next round
    attempts: int = 0  # of the present stage that failed
    failure: str | None = None
    stage_s: Mapping[str, float] = field(default_factory=dict)
    candidates: tuple[Candidate, ...] = (Candidate(),)

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
    def candidate(self) -> Candidate:
        """Whose turn it is; after the last turn the one that goes on, or where none does, the last."""
        for one in self.candidates:
            if one.tried is None:
                return one
        adapter = getattr(self.state, "adapter", None)
        passed = (c for c in self.candidates if adapter and c.tried and c.tried.adapter == adapter)
        return next(passed, self.candidates[-1])

    @property
    def run(self) -> str:
        """The name of the training run of its candidate."""
        return self.run_of(self.candidate)

    def run_of(self, candidate: Candidate) -> str:
        return f"round-{self.id}-{candidate.name}" if candidate.name else f"round-{self.id}"

    def having(self, tried: Tried) -> Round:
        """The round that knows what came of its candidate."""
        this = self.candidate
        known = tuple(replace(one, tried=tried) if one is this else one for one in self.candidates)
        return replace(self, candidates=known)

    def to(self, state: State, now: float) -> Round:
        """The round in its next state, the clock and the attempts of the stage begun anew."""
        stage = self.stage.value
        spent = {**self.stage_s, stage: self.stage_s.get(stage, 0.0) + now - self.stage_started_at}
        return replace(self, state=state, stage_started_at=now, attempts=0, failure=None, stage_s=spent)

    def again(self, failure: str) -> Round:
        """The round after a failed attempt of its stage."""
        return replace(self, attempts=self.attempts + 1, failure=failure)

    def waits(self, failure: str | None) -> Round:
        """The round whose stage begins again, by no fault of its own; None: it waits for that no longer."""
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
