"""What is shown of rounds: GET /v1/loop and `kto-ray status`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy as sa

from kto_ray.config import Config
from kto_ray.paths import without_passwords
from kto_ray.records.completions import Json
from kto_ray.records.rounds import Awaiting, Candidate, Ended, Round, Stage
from kto_ray.records.trainings import TrainingRun
from kto_ray.store import leases, quarantine, rounds, tallies, trainings
from kto_ray.store.tallies import Tally

SHOWN = 100  # of the newest rounds
NEXT = {
    Stage.SNAPSHOT: "freeze the feedback into a snapshot, then train",
    Stage.TRAIN: "train the candidate with KTO, then load it into the replicas",
    Stage.LOAD: "every replica loads and probes the candidate, then the gate",
    Stage.GATE: "judge the candidate on held-out feedback and the guard prompts, then the A/B test",
    Stage.RELOAD: "every replica loads the best candidate again, then the A/B test",
    Stage.ROLLOUT: "the A/B test decides on users' thumbs",
}


@dataclass(frozen=True, slots=True)
class ShownCandidate:
    """One of several candidates of a round: what it sets over the `kto` section, and what came of it, None where it has
    not had its turn: `decision` is the gate's, None also where it failed; `auc_gain` that over the champion."""

    name: str
    kto: Json
    adapter: str | None
    decision: str | None
    reason: str | None
    auc_gain: float | None
    train_metrics: Json


@dataclass(frozen=True, slots=True)
class ShownRound:
    """A round on one line. `reason` is that of its end, or of the present stage's last failure; `train_metrics` are the
    figures of its training so far, `history` (a record an optimizer step) where one round was asked for. `candidates`
    are those with a name; `adapter` and the figures are of the one whose turn it is, and then of the one that goes on.
    """

    id: int
    stage: str
    started_at: float
    stage_started_at: float
    snapshot: str | None
    adapter: str | None
    rollout: str | None
    outcome: str | None
    reason: str | None
    attempts: int
    ended_at: float | None
    stage_s: Mapping[str, float]
    train_metrics: Json
    history: tuple[Json, ...] = ()
    candidates: tuple[ShownCandidate, ...] = ()


@dataclass(frozen=True, slots=True)
class ShownLabels:
    desirable: int
    undesirable: int
    new: int  # that no round has seen


@dataclass(frozen=True, slots=True)
class ShownFeedback:
    stored: int
    pending: int
    withdrawn: int
    held: int  # wait for an operator, and count nowhere
    held_why: Mapping[str, int]  # of the newest held, by reason
    strangers: int  # of neither who received the answer nor a reviewer
    orphans: int  # whose completion never came


@dataclass(frozen=True, slots=True)
class ShownController:
    """Whether a controller `acts`: holds its lease, which it renewed `ago_s` ago."""

    acts: bool
    node: str | None
    pid: int | None
    ago_s: float | None
    in_words: str


@dataclass(frozen=True, slots=True)
class LoopPage:
    """`rounds` are the newest, oldest first; `next` says in words what happens next, once a `controller` acts."""

    round: ShownRound | None
    rounds: tuple[ShownRound, ...]
    labels: ShownLabels
    feedback: ShownFeedback
    completions: int
    min_labels: int
    next: str
    controller: ShownController


def loop(tx: sa.Connection, config: Config) -> LoopPage:
    found = rounds.latest(tx, SHOWN)
    runs = trainings.of_rounds(tx, found[0].id) if found else {}
    every = tuple(_shown(one, runs) for one in found)
    current = every[-1] if found and found[-1].in_progress else None
    tally, new = tallies.total(tx), rounds.new_labels(tx)
    return LoopPage(
        round=current,
        rounds=every,
        labels=ShownLabels(tally.desirable, tally.undesirable, new),
        feedback=_feedback(tx, tally),
        completions=tally.completions,
        min_labels=config.loop.min_labels,
        next=_next(config, found[-1] if found else None, new),
        controller=controller(tx),
    )


def controller(tx: sa.Connection) -> ShownController:
    holder = leases.holder(tx, leases.CONTROLLER)
    if holder is None:
        words = (
            "no controller acts: rounds, tests and holdbacks stand still until one takes its lease; the log of the "
            "controller, or of Ray Serve, says why none does"
        )
        return ShownController(False, None, None, None, words)
    words = f"process {holder.pid} on {holder.node}, which renewed its lease {holder.ago_s:.1f} s ago"
    return ShownController(True, holder.node, holder.pid, holder.ago_s, words)


def _feedback(tx: sa.Connection, tally: Tally) -> ShownFeedback:
    return ShownFeedback(
        stored=tally.stored,
        pending=tally.pending,
        withdrawn=tally.withdrawn,
        held=tally.held,
        held_why=quarantine.by_reason(tx) if tally.held else {},
        strangers=tally.strangers,
        orphans=tally.orphans,
    )


def one(tx: sa.Connection, number: int) -> ShownRound | None:
    """A round with the record of every step of its training."""
    found = rounds.get(tx, number)
    if found is None:
        return None
    runs, own = trainings.of_rounds(tx, number), trainings.get(tx, found.run)
    return _shown(found, runs | ({found.run: own} if own else {}))


def _next(config: Config, newest: Round | None, new: int) -> str:
    if newest is not None and newest.in_progress:
        if isinstance(newest.state, Awaiting):
            return waiting(config, newest, newest.state.adapter)
        return NEXT[newest.stage]
    section, begun = config.loop, newest.id if newest is not None else 0
    if not section.enabled:
        return "the loop is off (loop.enabled: false); POST /v1/loop/run starts a round"
    if section.max_rounds is not None and begun >= section.max_rounds:
        words = f"no round starts by itself after {section.max_rounds} (loop.max_rounds), and there have been {begun}"
        return f"{words}; POST /v1/loop/run starts one"
    return f"a round starts at {section.min_labels} new labels; {new} so far"


def waiting(config: Config, current: Round, adapter: str) -> str:
    """What waits for whom, and until when."""
    until = datetime.fromtimestamp(current.stage_started_at + 3600 * config.loop.approval_hours, UTC)
    return (
        f"{adapter} has passed the gate and waits for a person: kto-ray rollout approve, which begins its A/B test, or "
        f"reject; nobody meets it before, and on {until:%Y-%m-%d %H:%M} UTC its round ends (loop.approval_hours)"
    )


def _shown(found: Round, runs: Mapping[str, TrainingRun]) -> ShownRound:
    state, run = found.state, runs.get(found.run)
    ended = state if isinstance(state, Ended) else None
    reason = ended.reason if ended else found.failure  # an error may quote the URI that it is about
    return ShownRound(
        id=found.id,
        stage=found.stage.value,
        started_at=found.started_at,
        stage_started_at=found.stage_started_at,
        snapshot=getattr(state, "snapshot", None),
        adapter=getattr(state, "adapter", None),
        rollout=getattr(state, "rollout", None),
        outcome=ended.outcome.value if ended else None,
        reason=without_passwords(reason) if reason else reason,
        attempts=found.attempts,
        ended_at=ended.at if ended else None,
        stage_s=found.stage_s,
        train_metrics=run.figures if run else {},
        history=run.history if run else (),
        candidates=tuple(_candidate(found, one, runs) for one in found.candidates if one.name),
    )


def _candidate(found: Round, one: Candidate, runs: Mapping[str, TrainingRun]) -> ShownCandidate:
    tried, run = one.tried, runs.get(found.run_of(one))
    return ShownCandidate(
        name=one.name,
        kto=one.kto,
        adapter=tried.adapter if tried else None,
        decision=tried.decision.value if tried and tried.decision else None,
        reason=without_passwords(tried.reason) if tried else None,
        auc_gain=tried.gain if tried else None,
        train_metrics=run.figures if run else {},
    )
