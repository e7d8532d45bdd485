"""What the loop does to the store: typed moves, performed in one transaction each.

A move is all of a decision, the round's new state and what goes with it: killed before, nothing of it is there; killed
after, all of it is.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from kto_ray.records.adapters import CHAMPION, AdapterVersion, is_base
from kto_ray.records.evaluation import GateReport
from kto_ray.records.replicas import ReplicaReport
from kto_ray.records.rollouts import BudgetReset, Look, RolloutState
from kto_ray.records.rounds import Candidate, Round
from kto_ray.records.snapshots import SnapshotManifest
from kto_ray.records.trainings import TrainingRun
from kto_ray.store import adapters, evaluation, replicas, rollouts, rounds, snapshots, trainings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KeepSnapshot:
    manifest: SnapshotManifest
    uri: str


@dataclass(frozen=True, slots=True)
class Point:
    """An alias at an adapter, or at nothing."""

    alias: str
    adapter: str | None


Effect = KeepSnapshot | TrainingRun | AdapterVersion | GateReport | RolloutState | Look | Point | BudgetReset


@dataclass(frozen=True, slots=True)
class Begin:
    """A new round, of these candidates."""

    candidates: tuple[Candidate, ...] = (Candidate(),)


@dataclass(frozen=True, slots=True)
class Start:
    """The job of the round's present stage."""


@dataclass(frozen=True, slots=True)
class Change:
    """`round` as it is from now on, None where it stays; `words` go to the log, as an error where something failed."""

    round: Round | None
    effects: tuple[Effect, ...] = ()
    words: str | None = None
    failed: bool = False


Move = Begin | Start | Change | None


def overtaken(tx: sa.Connection, change: Change, live: Sequence[ReplicaReport], timeout_s: float) -> bool:
    """Whether it moves the champion, and a replica may lack the next one: it has come in since `live` was looked at, or
    is silent as all were while the store was away. In the lease's transaction, which none comes in beside: the alias
    never points at what a live replica lacks. The base model none lacks."""
    next_ones = [each.adapter for each in change.effects if isinstance(each, Point) and each.alias == CHAMPION]
    if all(adapter is None or is_base(adapter) for adapter in next_ones):
        return False
    if not replicas.settled(tx, timeout_s):
        log.warning(
            "the champion stays for now: a replica is silent, and none was heard of for so long that it is gone"
        )
        return True
    return not {now.replica for now in replicas.live(tx, timeout_s)} <= {seen.replica for seen in live}


def goes_on(before: Round | None, move: Move) -> bool:
    """Whether a move brings a round to another stage, whose work may begin at once."""
    after = move.round if isinstance(move, Change) else None
    moved = before is not None and after is not None and after.in_progress and after.stage is not before.stage
    return isinstance(move, Begin) or moved


def perform(tx: sa.Connection, change: Change, now: float) -> None:
    for effect in change.effects:
        _perform(tx, effect, now)
    if change.round is not None:
        rounds.update(tx, change.round)


def _perform(tx: sa.Connection, effect: Effect, now: float) -> None:
    match effect:
        case KeepSnapshot(manifest, uri):
            snapshots.insert(tx, manifest, uri)
        case TrainingRun():
            trainings.put(tx, effect)
        case AdapterVersion():
            if adapters.get(tx, effect.name) is None:
                adapters.insert(tx, effect)
        case GateReport():
            evaluation.put(tx, effect)
        case RolloutState():
            rollouts.put(tx, effect)
        case Look():
            rollouts.add_look(tx, effect)
        case Point(alias, adapter):
            adapters.set_alias(tx, alias, adapter, now)
        case BudgetReset():
            rollouts.reset_budget(tx, effect)
