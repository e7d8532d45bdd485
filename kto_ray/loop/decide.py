"""What the loop does next, from what it sees. Pure: no store, no Ray, no clock.

A round walks SNAPSHOT -> TRAIN -> LOAD -> GATE -> ROLLOUT -> DONE, with each candidate from TRAIN to GATE; then by
RELOAD where the best was not the last, and by APPROVAL where a person is asked. A decision is at most one move.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import assert_never

from kto_ray.config import Config
from kto_ray.loop import candidates, verdict
from kto_ray.loop.moves import Begin, Change, KeepSnapshot, Move, Point, Start
from kto_ray.loop.seen import NOBODY, Failed, Running, Seen
from kto_ray.paths import Paths
from kto_ray.records.adapters import CHALLENGER, CHAMPION
from kto_ray.records.evaluation import GateReport
from kto_ray.records.rounds import (
    Awaiting,
    Ended,
    Judging,
    Loading,
    OnTrial,
    Outcome,
    Reloading,
    Round,
    Sealing,
    Stage,
    Training,
)
from kto_ray.records.snapshots import SnapshotManifest
from kto_ray.records.training import Trained, TrainProgress
from kto_ray.records.trainings import TrainingRun, ended_run


def decide(config: Config, seen: Seen) -> Move:
    """The next move, None where there is nothing to do but wait."""
    if watched := verdict.watch_over(config, seen):
        return watched
    if measured := verdict.measure(config, seen):
        return measured
    if seen.round is None:
        return Begin(candidates.planned(config)) if due(config, seen) else None
    if late := _late(config, seen, seen.round):
        return late
    if isinstance(seen.round.state, (Reloading, Awaiting)) and (stale := candidates.outdated(seen, seen.round)):
        return Change(stale, (Point(CHALLENGER, None),), stale.in_words)
    match seen.round.state:
        case Sealing() | Training() | Judging():
            return _work(config, seen, seen.round)
        case Loading(_, adapter) | Reloading(_, adapter):
            return _load(config, seen, seen.round, adapter)
        case OnTrial() as testing:
            return verdict.test(config, seen, testing)
        case Awaiting() | Ended():
            return None


def _late(config: Config, seen: Seen, current: Round) -> Move:
    """The end of a stage that has taken longer than it may, unless what it waited for has just come. (How long a
    candidate may load, `_load` says.)"""
    section = config.loop
    allowed = {
        Stage.SNAPSHOT: section.snapshot_hours,
        Stage.TRAIN: section.train_hours,
        Stage.GATE: section.gate_hours,
        Stage.APPROVAL: section.approval_hours,
    }.get(current.stage)
    if allowed is None or seen.now - current.stage_started_at < 3600 * allowed:
        return None
    if isinstance(current.state, Awaiting):
        words = f"nobody approved {current.state.adapter} within {allowed:g} hours (loop.approval_hours)"
        ended = current.ended(Outcome.ABORTED, words, seen.now)
        return Change(ended, (Point(CHALLENGER, None),), ended.in_words)
    if isinstance(seen.job, (SnapshotManifest, Trained, GateReport)):
        return None
    why = current.failure or ("its job still runs" if isinstance(seen.job, Running) else "its job did not end")
    words = f"not done within {allowed:g} hours (loop.{current.stage}_hours): {why}"
    return _give_up(config, seen, current, words)


def due(config: Config, seen: Seen) -> bool:
    """Whether a round begins by itself."""
    section = config.loop
    begun = seen.ended.id if seen.ended else 0
    if not section.enabled or (section.max_rounds is not None and begun >= section.max_rounds):
        return False
    if seen.new_labels >= section.min_labels:
        return True
    if section.every_min is None or seen.new_labels == 0:
        return False
    return seen.ended is None or seen.now - seen.ended.stage_started_at >= 60 * section.every_min


def _work(config: Config, seen: Seen, current: Round) -> Move:
    if current.stage is Stage.GATE and seen.stood_in_for and (seen.job is None or isinstance(seen.job, Failed)):
        return _await_champion(seen, current)
    match seen.job:
        case None:
            return Start()
        case Running(progress):
            return _progress(current, progress)
        case Failed() as failed:
            return _failed(config, seen, current, failed)
        case SnapshotManifest() as manifest:
            kept = KeepSnapshot(manifest, Paths(config.home).snapshot(manifest.id))
            return Change(current.to(Training(manifest.id), seen.now), (kept,))
        case Trained() as trained:
            return _trained(seen, current, trained)
        case GateReport() as report:
            return candidates.judged(config, seen, current, report)
        case _ as never:
            assert_never(never)


def _await_champion(seen: Seen, current: Round) -> Move:
    """The gate compares with the champion: while another answers in its place, it waits, and what failed is no
    attempt."""
    champion = seen.aliases[CHAMPION]
    told = f"another answers for the champion {champion}: {seen.lacking(champion)}"
    if told == current.failure:
        return None
    words = f"round {current.id}, stage {current.stage} waits for the champion: {told}"
    return Change(current.waits(told), words=words, failed=True)


def _progress(current: Round, progress: TrainProgress | None) -> Move:
    if progress is None or not isinstance(current.state, Training):
        return None
    run = TrainingRun(
        current.run, current.state.snapshot, current.stage_started_at, current.id, figures=asdict(progress)
    )
    return Change(None, (run,))


def _trained(seen: Seen, current: Round, trained: Trained) -> Move:
    assert isinstance(current.state, Training)
    version = trained.version
    run = ended_run(current.run, trained, current.stage_started_at, seen.now, current.id)
    loading = current.to(Loading(current.state.snapshot, version.name), seen.now)
    return Change(loading, (run, version, Point(CHALLENGER, version.name)))


def _failed(config: Config, seen: Seen, current: Round, failed: Failed) -> Move:
    """Bad data and a training that diverged end a candidate at once; what did not reach its storage waits. Anything
    else is tried again, as often as the config allows; also a training whose workers kept failing, for what feeds them
    may have been lost with a node, and only a new start makes it anew."""
    if failed.away:
        words = f"round {current.id}, stage {current.stage} waits for the storage: {failed.reason}"
        return Change(current.waits(failed.reason), words=words, failed=True)
    if not failed.hopeless and current.attempts + 1 < config.loop.max_attempts:
        words = f"round {current.id}, stage {current.stage} failed and is tried again: {failed.reason}"
        return Change(current.again(failed.reason), words=words, failed=True)
    return _give_up(config, seen, current, failed.reason)


def _give_up(config: Config, seen: Seen, current: Round, reason: str) -> Change:
    """The end of a candidate, and with the last of them, or without a snapshot, of the round."""
    words = f"{current.stage}: {reason}"
    if not isinstance(current.state, Sealing):
        return candidates.failed(config, seen, current, words)
    ended = current.ended(Outcome.FAILED, words, seen.now)
    return Change(ended, (Point(CHALLENGER, None),), ended.in_words, failed=True)


def _load(config: Config, seen: Seen, current: Round, adapter: str) -> Move:
    """Wait until every live replica holds and has probed the candidate. One that refuses it for what it is ends it;
    what stands in the way of one may pass, within `adapters.load_s`."""
    faults = [replica.errors[adapter] for replica in seen.live if adapter in replica.errors]
    for fault in faults:
        if fault.refused:
            return _give_up(config, seen, current, f"a replica refused the adapter: {fault.reason}")
    if seen.all_hold(adapter):
        if isinstance(current.state, Loading):
            return Change(current.to(Judging(current.state.snapshot, adapter), seen.now))
        return candidates.to_users(config, seen, current, adapter)
    told = seen.lacking(adapter)
    if seen.now - current.stage_started_at > config.adapters.load_s:
        return _give_up(config, seen, current, f"{told}, after {config.adapters.load_s:.0f} s (adapters.load_s)")
    if faults or told == NOBODY:
        words = f"round {current.id} waits: {told}"
        return Change(current.waits(told), words=words, failed=True) if told != current.failure else None
    return Change(current.waits(None)) if current.failure == NOBODY else None
