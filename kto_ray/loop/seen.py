"""All that a decision of the loop looks at, as records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kto_ray.paths import is_away
from kto_ray.records.adapters import CHAMPION
from kto_ray.records.evaluation import GateReport
from kto_ray.records.replicas import ReplicaReport, champions_answer, held_by_all
from kto_ray.records.rollouts import Look, RolloutState
from kto_ray.records.rounds import Round
from kto_ray.records.snapshots import SnapshotManifest
from kto_ray.records.training import Trained, TrainingDiverged, TrainProgress
from kto_ray.records.trials import Standing, Votes


@dataclass(frozen=True, slots=True)
class Running:
    """The stage's job runs; `progress` is that of a training that has taken a step since the last look."""

    progress: TrainProgress | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The stage's job ended in an error. The same input would end the same way where it is hopeless; it was not looked
    at where the storage is `away`."""

    reason: str
    hopeless: bool
    away: bool = False

    @classmethod
    def of(cls, error: BaseException) -> Failed:
        """Bad data and a training that diverged are hopeless: the same rows would end the same way."""
        hopeless = isinstance(error, (ValueError, TrainingDiverged))
        return cls(f"{type(error).__name__}: {error}", hopeless, is_away(error))


Job = Running | Failed | SnapshotManifest | Trained | GateReport | None  # None: not started, or lost with its process


@dataclass(frozen=True, slots=True)
class Trial:
    """The A/B test of a round, what its present stage has come to, and what the last look saw."""

    state: RolloutState
    standing: Standing
    last: Look | None


NOBODY = "no policy replica is live"


@dataclass(frozen=True, slots=True)
class Seen:
    """All that a decision looks at."""

    now: float
    round: Round | None  # in progress
    ended: Round | None  # the newest of those that have ended
    new_labels: int
    labels: int
    aliases: Mapping[str, str]  # the champion is always among them
    live: tuple[ReplicaReport, ...]
    was_left: bool = False  # the previous champion, by a rollback or an alarm, for the present one
    trial: Trial | None = None  # running or paused, or that of the round in progress
    holdback: Trial | None = None  # of the last promotion, while it goes on
    base: Trial | None = None  # the holdback on the base model, while there is one
    job: Job = None
    nonce: str = ""  # fresh and random: names a new test
    salt: str = ""  # likewise, and a secret: draws its arms
    level: float = 0.0  # what the budget of the loop's life allows the next test. Looked up where one may begin
    accepted: float | None = None  # the gain of a blind test that a person let begin, likewise
    votes: Votes | None = None  # who judged of late, likewise; None of a service that is too young to tell
    # What learnt from rows that were erased, or holds them, of all that has an alias or is in progress: names of
    # adapters and ids of snapshots. Looked up for Act.FORGET alone
    tainted: frozenset[str] = frozenset()

    def all_hold(self, adapter: str) -> bool:
        """Whether every live replica holds the adapter, and there is one."""
        return adapter in held_by_all(self.live)

    @property
    def stood_in_for(self) -> bool:
        """Whether another answers in the champion's place, for a replica cannot load it."""
        champion = self.aliases[CHAMPION]
        return champions_answer(champion, None, "", self.live) != champion

    def lacking(self, adapter: str) -> str:
        """How many live replicas do not hold the adapter, and what they say of it."""
        if not self.live:
            return NOBODY
        waiting = sum(adapter not in replica.held for replica in self.live)
        faults = sorted((r.replica, r.errors[adapter].reason) for r in self.live if adapter in r.errors)
        told = f"{waiting} of {len(self.live)} live replicas do not hold the adapter"
        return told + "".join(f"; {name}, at each try: {reason}" for name, reason in faults)
