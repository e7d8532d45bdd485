"""One tick of the loop: observe, decide, act, persist.

Heavy work runs in Ray tasks; a tick only asks whether they are done. Killed at any point, the next controller reads the
round's state from the store and starts its stage's job again: jobs are idempotent (snapshots are content-addressed,
training resumes from its last checkpoint, a gate report replaces itself), so nothing is done twice that matters. A
lease in the store keeps two controllers apart.
"""

from __future__ import annotations

import logging
import secrets
import time
import uuid
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import replace

import ray
import sqlalchemy as sa
from ray.serve.handle import DeploymentHandle

from kto_ray.config import Config
from kto_ray.feedback.quarantine import Why
from kto_ray.loop import trial, work
from kto_ray.loop.clearing import Clearing, cut_short
from kto_ray.loop.decide import decide
from kto_ray.loop.lease import Lease, LostLease
from kto_ray.loop.moves import Begin, Change, Move, Start, goes_on, overtaken, perform
from kto_ray.loop.operators import obey
from kto_ray.loop.seen import Failed, Job, Running, Seen
from kto_ray.provenance.taint import tainted
from kto_ray.records.adapters import CHAMPION, PREVIOUS
from kto_ray.records.evaluation import GateReport
from kto_ray.records.requests import Act, Request
from kto_ray.records.rollouts import RolloutKind
from kto_ray.records.rounds import Awaiting, Judging, Reloading, Round, Sealing, Stage, Training
from kto_ray.records.training import TrainProgress
from kto_ray.store import adapters, joining, quarantine, replicas, requests, rounds, snapshots, store_of, tallies
from kto_ray.store.database import STARTED_S
from kto_ray.train.job import read_progress

log = logging.getLogger(__name__)

READ_S = 1.0  # that a tick waits for a training's progress
REST_S = 20.0  # before a job begins again that did not reach its storage
DAY_S = 86_400.0
BEFORE_A_TEST = (Stage.GATE, Stage.RELOAD, Stage.APPROVAL)


class Loop:
    """The loop's one actor. Its memory is the store; what it holds itself (job handles) may be lost at any time."""

    def __init__(self, config: Config, policy: DeploymentHandle) -> None:
        self._config = config
        self._policy = policy
        self._store = store_of(config, wait_s=STARTED_S)
        self._lease = Lease(self._store)
        self._job: tuple[_Key, ray.ObjectRef] | None = None
        self._rests_until = float("-inf")  # after a job that did not reach its storage
        self._shown: TrainProgress | None = None
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="progress")
        self._reading: Future[TrainProgress | None] | None = None
        self._swept: int | None = 0  # the store's youth has been looked at up to here; None: all of it
        self._clearing = Clearing(config)
        self._watch = trial.Watch()
        self._joined = ""  # pending feedback has been looked at up to here

    def step(self) -> bool:
        """Advance the loop by at most one move; whether the next one need not wait (`goes_on`).

        Raises:
            LostLease: another controller holds the lease, and starts the stage's job anew.
        """
        try:
            return self._tick()
        except LostLease:
            self._let_go()
            raise

    def _tick(self) -> bool:
        if self._lease.hold():
            self._take_over()
        self._clearing.look()
        rules = self._config.feedback
        with self._store.read() as tx:
            pending = joining.overlooked(tx, self._joined, time.time() - rules.pending_days * DAY_S)
            sweep = None if self._swept is None else quarantine.youth(tx, self._swept, rules)
            asked = requests.asked(tx)
        self._joined, self._swept = pending.after, sweep.after if sweep else None
        if pending.found or pending.stale:
            with self._act() as tx:
                joining.join(tx, pending.found, rules)
                joining.expire(tx, pending.stale)
        if sweep and sweep.found:
            with self._act() as tx:
                quarantine.hold(tx, sweep.found, Why.NEWCOMER)
        for request in asked:
            try:
                self._obey(self._observe(), request)
            except OSError as error:  # files that an answer hangs on are out of reach: the request waits
                log.warning("request %d (%s) waits: %s", request.id, request.act, error)
        now = time.time()
        with self._store.read() as tx:
            testing = trial.due(tx, now)
        for kind in testing:
            with self._act() as tx:
                trial.count(tx, self._config.rollout, kind, now)
        held = self._job
        seen = self._observe(with_job=True)
        move = decide(self._config, seen)
        self._do(seen, move)
        if isinstance(move, Change) and move.round is None:
            self._job = held  # what it came to was not of this move, and is for the next
        return goes_on(seen.round, move)

    # ---- observe

    def _observe(self, with_job: bool = False) -> Seen:
        config, now = self._config, time.time()
        with self._store.read() as tx:
            newest = rounds.newest(tx)
            current = newest if newest is not None and newest.in_progress else None
            before = current is not None and current.stage in BEFORE_A_TEST
            aliases = adapters.aliases(tx, config.base_name)
            previous = aliases.get(PREVIOUS)
            seen = Seen(
                now=now,
                round=current,
                ended=newest if current is None else None,
                new_labels=rounds.new_labels(tx),
                labels=tallies.total(tx).labels,
                aliases=aliases,
                was_left=previous is not None and adapters.was_left(tx, previous, aliases[CHAMPION]),
                live=tuple(replicas.live(tx, config.serve.heartbeat_timeout_s)),
                trial=self._watch.trial(tx, current),
                holdback=self._watch.holdback(tx),
                base=self._watch.holdback(tx, RolloutKind.BASE),
                level=trial.level_of(tx, config.rollout) if before else 0.0,
                accepted=trial.accepted(tx) if before else None,
                nonce=uuid.uuid4().hex[:8],
                salt=secrets.token_hex(16),
            )
        if current is None:
            return seen
        if with_job:
            seen = replace(seen, job=self._look(seen, current))
        asked = isinstance(current.state, Awaiting) and not with_job  # an operator may approve
        loaded = isinstance(current.state, Reloading) and seen.all_hold(current.state.adapter)
        if isinstance(seen.job, GateReport) or loaded or asked:  # a test may begin
            seen = replace(seen, votes=trial.votes_of(self._store, config.rollout, now))
        return seen

    def _look(self, seen: Seen, current: Round) -> Job:
        """Where the job of the round's stage stands; what came of it is told once. Whoever cannot persist that starts
        the job anew: what it did is found again, and what stood in the way may be another's now, as an adapter's
        number."""
        if self._job is None or self._job[0] != _key(seen, current):
            return None
        ref = self._job[1]
        done, _ = ray.wait([ref], timeout=0)
        if not done:
            return Running(self._news(current))
        self._job = None
        try:
            result: Job = ray.get(ref)
            return result
        except ray.exceptions.RayTaskError as error:
            return Failed.of(error.cause)
        except ray.exceptions.RayError as error:  # the worker died: out of memory, a lost node
            return Failed.of(error)

    def _news(self, current: Round) -> TrainProgress | None:
        """How far a training is, where it went on since the last look."""
        if not isinstance(current.state, Training):
            return None
        if self._reading is None:
            self._reading = self._reader.submit(read_progress, self._config, current.run)
        if not wait([self._reading], READ_S).done:  # the lease does not wait for a storage that is away
            return None
        reading, self._reading = self._reading, None
        try:
            progress = reading.result()
        except OSError as error:  # the job goes on; what it says of itself is out of reach
            log.warning("the progress of %s cannot be read: %s", current.run, error)
            return None
        return progress if progress != self._shown else None

    # ---- act

    def _do(self, seen: Seen, move: Move) -> None:
        match move:
            case Begin(candidates):
                with self._act() as tx:
                    begun = rounds.insert(tx, seen.now, candidates)
                log.info("round %d begins with %d new labels", begun.id, seen.new_labels)
            case Start():
                assert seen.round is not None
                if time.monotonic() < self._rests_until:
                    return
                self._let_go()  # of a gate that compares with a former champion
                with self._act():  # nobody takes the lease before Ray has the job
                    self._job = (_key(seen, seen.round), self._start(seen, seen.round))
            case Change():
                with self._act() as tx:
                    if self._overtaken(tx, move, seen):
                        return
                    perform(tx, move, seen.now)
                self._stop_job(seen, move.round)  # of one that ends by its deadline
                if isinstance(seen.job, Failed) and seen.job.away:
                    self._rests_until = time.monotonic() + REST_S
                if isinstance(seen.job, Running):
                    self._shown = seen.job.progress
                if move.words:
                    log.log(logging.ERROR if move.failed else logging.INFO, move.words)

    def _obey(self, seen: Seen, request: Request) -> None:
        """Do what was asked, and answer, at once; or at the next tick, should a replica have come in just now."""
        if request.act is Act.FORGET:
            seen = replace(seen, tainted=self._tainted(seen))
        move, answer = obey(self._config, seen, request)
        with self._act() as tx:
            if isinstance(move, Change) and self._overtaken(tx, move, seen):
                return
            if isinstance(move, Begin):
                rounds.insert(tx, seen.now, move.candidates)
            elif isinstance(move, Change):
                perform(tx, move, seen.now)
            requests.answer(tx, request.id, answer, seen.now)
        if isinstance(move, Change):
            self._stop_job(seen, move.round)

    def _stop_job(self, seen: Seen, after: Round | None) -> None:
        """Where the round has left its job's stage, or its candidate, nobody waits for it any more."""
        if seen.round is None or after is None or _key(seen, after) == _key(seen, seen.round):
            return
        self._let_go()
        self._clearing.add(sorted(cut_short(after) - cut_short(seen.round)))

    def _let_go(self) -> None:
        if self._job is not None:
            job, self._job = self._job[1], None
            work.cancel(job)

    def _take_over(self) -> None:
        """Whoever acted before may have gone beyond this process's job, or been killed before a training's workers were
        cleared: in the round before, where the storage was away, without which the next seals nothing."""
        self._let_go()
        with self._store.read() as tx:
            self._clearing.add(run for known in rounds.latest(tx, 2) for run in sorted(cut_short(known)))

    def _tainted(self, seen: Seen) -> frozenset[str]:
        state = seen.round.state if seen.round is not None else None
        with self._store.read() as tx:
            every, sealed = adapters.every(tx), dict(snapshots.every(tx))
        names = {*seen.aliases.values(), getattr(state, "adapter", None)}
        return tainted(every, sealed, names, getattr(state, "snapshot", None))

    def _start(self, seen: Seen, current: Round) -> ray.ObjectRef:
        # Trained and judged in the precision that is served, whatever the training nodes compute natively.
        config = next((self._config.with_dtype(replica.dtype) for replica in seen.live), self._config)
        match current.state:
            case Sealing():
                return work.start(work.seal, self._config)
            case Training(snapshot):
                with self._store.read() as tx:
                    uri, number = snapshots.uri_of(tx, snapshot), adapters.next_number(tx)
                    champion = adapters.get(tx, seen.aliases[CHAMPION])  # None where it is the base model
                over = current.candidate.kto
                return work.start(work.learn, config, current.run, number, uri, champion, over)
            case Judging(snapshot, adapter):
                with self._store.read() as tx:
                    uri, candidate = snapshots.uri_of(tx, snapshot), adapters.get(tx, adapter)
                    champion = adapters.get(tx, seen.aliases[CHAMPION])
                over = current.candidate.kto
                return work.start(work.examine, config, self._policy, candidate, champion, uri, over)
            case _:
                raise AssertionError(f"stage {current.stage} has no job")

    # ---- persist

    def _act(self) -> AbstractContextManager[sa.Connection]:
        return self._lease.act()

    def _overtaken(self, tx: sa.Connection, change: Change, seen: Seen) -> bool:
        return overtaken(tx, change, seen.live, self._config.serve.heartbeat_timeout_s)


_Key = tuple[str, Stage, int, str | None]


def _key(seen: Seen, current: Round) -> _Key:
    """Of a job: the round and its candidate, the stage and the attempt; at the gate also the champion that it compares
    with, for once there is another, what it finds would be said of the wrong one."""
    against = seen.aliases[CHAMPION] if current.stage is Stage.GATE else None
    return current.run, current.stage, current.attempts, against
