"""The controller: observe, decide, act, persist; one `step()` a tick.

A round walks SNAPSHOT -> TRAIN -> LOAD -> GATE -> ROLLOUT -> DONE, and every move is one transaction. Heavy work runs
in Ray tasks; the controller only asks whether they are done. Killed at any point, the next controller reads the round's
stage from the store and starts that stage's job again: jobs are idempotent (snapshots are content-addressed, training
resumes from its last checkpoint, a gate report replaces itself), so nothing is done twice that matters. A lease in the
store keeps two controllers apart, also while Ray Serve replaces one by another.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import ray
import sqlalchemy as sa
from ray.serve.handle import DeploymentHandle

from kto_ray import jobs
from kto_ray.config import Config
from kto_ray.paths import Paths
from kto_ray.rollout import machine
from kto_ray.serve import state
from kto_ray.store import adapters, feedback, open_store, rollouts, rounds
from kto_ray.train.job import read_progress
from kto_ray.train.records import TrainingDiverged
from kto_ray.types import (
    CHALLENGER,
    CHAMPION,
    PREVIOUS,
    AdapterVersion,
    GateDecision,
    GateReport,
    RolloutState,
    RolloutStatus,
    Round,
    SnapshotManifest,
    Stage,
)

log = logging.getLogger(__name__)

LEASE_TTL_S = 10.0


class LostLease(RuntimeError):
    """Another controller acts; this one waits."""


class Loop:
    """The loop's one actor. Its memory is the store; what it holds itself (job handles) may be lost at any time."""

    def __init__(self, config: Config, policy: DeploymentHandle) -> None:
        self._config = config
        self._policy = policy
        self._paths = Paths(config.home)
        self._store = open_store(config.database_url)
        self._holder = f"{os.uname().nodename}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._job: tuple[tuple[int, Stage, int], ray.ObjectRef] | None = None

    def step(self) -> None:
        """Advance the loop by at most one move.

        Raises:
            LostLease: another controller holds the lease.
        """
        with self._act() as tx:
            feedback.join_pending(tx)
            for request, action in rounds.asked(tx):
                rounds.answer(tx, request, self._obey(tx, action), time.time())
            current = rounds.current(tx)
            if current is None:
                self._begin_if_due(tx)
                return
        if current.stage is Stage.LOAD:
            self._load(current)
        elif current.stage is Stage.ROLLOUT:
            self._rollout(current)
        else:
            self._work(current)

    @contextmanager
    def _act(self) -> Iterator[sa.Connection]:
        """A transaction that only the lease's holder can commit."""
        with self._store.write() as tx:
            if not rounds.take_lease(tx, rounds.CONTROLLER, self._holder, os.getpid(), time.time(), LEASE_TTL_S):
                raise LostLease("another controller holds the lease")
            yield tx

    # ---- begin

    def _begin_if_due(self, tx: sa.Connection) -> None:
        section = self._config.loop
        every = rounds.every(tx)
        if section.max_rounds is not None and len(every) >= section.max_rounds:
            return
        new = state.labels_since_last_round(tx)
        waited_s = time.time() - (every[-1].ended_at or every[-1].started_at) if every else float("inf")
        timed = section.every_min is not None and new > 0 and waited_s >= 60 * section.every_min
        if section.enabled and (new >= section.min_labels or timed):
            begun = rounds.insert(tx, time.time())
            log.info("round %d begins with %d new labels", begun.id, new)

    # ---- stages with a job

    def _work(self, current: Round) -> None:
        """Start the stage's job, or look whether it is done and move on."""
        key = (current.id, current.stage, current.attempts)
        if self._job is None or self._job[0] != key:
            self._job = (key, self._start_job(current))
            return
        ref = self._job[1]
        if current.stage is Stage.TRAIN:
            self._show_progress(current)
        done, _ = ray.wait([ref], timeout=0)
        if not done:
            return
        self._job = None
        try:
            result = ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            self._failed(current, error.cause)
        except ray.exceptions.RayError as error:  # the worker died: out of memory, a lost node
            self._failed(current, error)
        else:
            self._succeeded(current, result)

    def _start_job(self, current: Round) -> ray.ObjectRef:
        config = self._config
        if current.stage is Stage.SNAPSHOT:
            return jobs.start(jobs.snapshot, config)
        with self._store.read() as tx:
            # Trained and judged in the precision that is served, whatever the training nodes compute natively.
            config = next((config.with_dtype(replica.dtype) for replica in self._live(tx)), config)
            uri = adapters.snapshot_uri(tx, current.snapshot or "")
            champion = self._champion(tx)
            number = adapters.next_number(tx)
            candidate = adapters.get(tx, current.adapter) if current.adapter else None
        assert uri is not None, "a round past SNAPSHOT has one"
        if current.stage is Stage.TRAIN:
            return jobs.start(jobs.train, config, self._run(current), number, uri, champion)
        assert current.stage is Stage.GATE and candidate is not None
        return jobs.start(jobs.examine, config, self._policy, candidate, champion, uri)

    def _succeeded(self, current: Round, result: Any) -> None:
        with self._act() as tx:
            if isinstance(result, SnapshotManifest):
                adapters.insert_snapshot(tx, result, self._paths.snapshot(result.id))
                self._move(tx, replace(current, snapshot=result.id), Stage.TRAIN)
            elif isinstance(result, jobs.Trained):
                if adapters.get(tx, result.version.name) is None:
                    adapters.insert(tx, result.version)
                adapters.set_alias(tx, CHALLENGER, result.version.name, time.time())
                trained = replace(current, adapter=result.version.name, train_metrics=result.metrics)
                self._move(tx, trained, Stage.LOAD)
            else:
                assert isinstance(result, GateReport)
                self._judged(tx, current, result)

    def _judged(self, tx: sa.Connection, current: Round, report: GateReport) -> None:
        adapters.insert_gate(tx, report)
        if report.decision is not GateDecision.PROMOTE_TO_CANARY:
            outcome = "rejected" if report.decision is GateDecision.REJECT else "inconclusive"
            adapters.set_alias(tx, CHALLENGER, None, time.time())
            self._end(tx, current, outcome, "; ".join(report.reasons))
            return
        champion = state.aliases(tx, self._config)[CHAMPION]
        name = f"rollout-{current.id}-{uuid.uuid4().hex[:8]}"
        salt = f"{self._config.salt}:{name}"
        begun = machine.start(self._config.rollout, champion, report.adapter, name, salt, time.time())
        rollouts.insert(tx, begun)
        self._move(tx, replace(current, rollout=name), Stage.ROLLOUT)

    def _failed(self, current: Round, error: BaseException) -> None:
        """Bad data and a training that diverged end a round at once: the same rows would end the same way. Anything
        else is tried again, as often as the config allows; also a training whose workers kept failing, for what feeds
        them may have been lost with a node, and only a new start makes it anew.
        """
        reason = f"{type(error).__name__}: {error}"
        log.error("round %d, stage %s failed: %s", current.id, current.stage, reason)
        hopeless = isinstance(error, (ValueError, TrainingDiverged))
        final = hopeless or current.attempts + 1 >= self._config.loop.max_attempts
        with self._act() as tx:
            if final:
                adapters.set_alias(tx, CHALLENGER, None, time.time())
                self._end(tx, current, "failed", f"{current.stage}: {reason}")
            else:
                rounds.update(tx, replace(current, attempts=current.attempts + 1, reason=reason))

    def _show_progress(self, current: Round) -> None:
        progress = read_progress(self._config, self._run(current))
        if progress is not None and asdict(progress) != current.train_metrics:
            with self._act() as tx:
                rounds.update(tx, replace(current, train_metrics=asdict(progress)))

    # ---- load and rollout

    def _load(self, current: Round) -> None:
        """Wait until every live replica holds and has probed the candidate."""
        assert current.adapter is not None
        with self._act() as tx:
            live = self._live(tx)
            refusals = [r.errors[current.adapter] for r in live if current.adapter in r.errors]
            if refusals:
                adapters.set_alias(tx, CHALLENGER, None, time.time())
                self._end(tx, current, "failed", f"load: a replica refused the adapter: {refusals[0]}")
            elif live and all(current.adapter in replica.held for replica in live):
                self._move(tx, current, Stage.GATE)

    def _rollout(self, current: Round) -> None:
        assert current.rollout is not None
        with self._act() as tx:
            test = rollouts.get(tx, current.rollout)
            assert test is not None
            if test.status in (RolloutStatus.RUNNING, RolloutStatus.PAUSED):
                test = self._decide(tx, test)
            if test.status is RolloutStatus.PROMOTED:
                self._promote(tx, test)
                self._end(tx, current, "promoted", test.reason)
            elif test.status is RolloutStatus.ABORTED:
                adapters.set_alias(tx, CHALLENGER, None, time.time())
                self._end(tx, current, "aborted", test.reason)

    def _decide(self, tx: sa.Connection, test: RolloutState) -> RolloutState:
        section, now = self._config.rollout, time.time()
        arms = rollouts.counts(tx, test.id, since=test.stage_started_at)
        decision = machine.decide(section, test, {section.stages[test.stage].name: arms}, now)
        points = rollouts.points(tx, test.id)
        seen = (test.stage, arms[0].users, arms[1].users)
        if not points or (points[-1]["stage"], points[-1]["n_champion"], points[-1]["n_challenger"]) != seen:
            rollouts.add_point(tx, test, now, arms, decision.interval)
        if decision.action is machine.Action.PROMOTE and not self._all_hold(tx, test.challenger):
            return test  # a replica is just starting; the alias moves when it holds the challenger
        changed = machine.step(section, test, decision, now)
        if changed != test:
            log.info("rollout %s: %s (%s)", test.id, decision.action, decision.reason)
            rollouts.update(tx, changed)
        return changed

    def _promote(self, tx: sa.Connection, test: RolloutState) -> None:
        now = time.time()
        adapters.set_alias(tx, PREVIOUS, test.champion, now)
        adapters.set_alias(tx, CHAMPION, test.challenger, now)
        adapters.set_alias(tx, CHALLENGER, None, now)

    # ---- operators

    def _obey(self, tx: sa.Connection, action: str) -> str:
        """Do what an operator asked; the answer says what happened, or begins with "refused"."""
        if action == "run":
            return self._run_now(tx)
        if action == "rollback":
            return self._rollback(tx)
        test = rollouts.live(tx)
        if test is None:
            return f"refused: there is no rollout to {action}"
        if action == "promote" and not self._all_hold(tx, test.challenger):
            return f"refused: not every live replica holds {test.challenger} yet"
        try:
            changed = machine.apply(test, action, time.time())  # type: ignore[arg-type]  # checked by apply
        except ValueError as error:
            return f"refused: {error}"
        rollouts.update(tx, changed)
        return f"rollout {test.id} is {changed.status}"

    def _run_now(self, tx: sa.Connection) -> str:
        current = rounds.current(tx)
        if current is not None:
            return f"refused: round {current.id} is in stage {current.stage}; one round at a time"
        if self._config.kto.dora:
            return "refused: kto.dora is true, and vLLM cannot serve a DoRA adapter; kto-ray train and evaluate work"
        if feedback.counts(tx).labels == 0:
            return "refused: there is no feedback to learn from"
        return f"round {rounds.insert(tx, time.time()).id} begins"

    def _rollback(self, tx: sa.Connection) -> str:
        if rollouts.live(tx) is not None:
            return "refused: a rollout is running; abort it first"
        names = state.aliases(tx, self._config)
        target = names.get(PREVIOUS)
        if target is None:
            return "refused: there is no previous champion"
        if target != self._config.base_name and not self._all_hold(tx, target):
            return f"refused: not every live replica holds {target} yet"
        adapters.set_alias(tx, PREVIOUS, names[CHAMPION], time.time())
        adapters.set_alias(tx, CHAMPION, target, time.time())
        return f"champion is {target} again"

    # ---- small

    def _run(self, current: Round) -> str:
        return f"round-{current.id}"

    def _champion(self, tx: sa.Connection) -> AdapterVersion | None:
        """The champion's version, None where it is the base model."""
        return adapters.get(tx, state.aliases(tx, self._config)[CHAMPION])

    def _live(self, tx: sa.Connection) -> list[Any]:
        return rollouts.live_replicas(tx, time.time() - self._config.serve.heartbeat_timeout_s)

    def _all_hold(self, tx: sa.Connection, name: str) -> bool:
        live = self._live(tx)
        return bool(live) and all(name in replica.held for replica in live)

    def _move(self, tx: sa.Connection, changed: Round, stage: Stage) -> None:
        now = time.time()
        spent = {**changed.stage_s, changed.stage.value: now - changed.stage_started_at}
        rounds.update(tx, replace(changed, stage=stage, stage_started_at=now, attempts=0, stage_s=spent))

    def _end(self, tx: sa.Connection, current: Round, outcome: str, reason: str | None) -> None:
        now = time.time()
        log.info("round %d ends: %s (%s)", current.id, outcome, reason)
        self._move(tx, replace(current, outcome=outcome, reason=reason, ended_at=now), Stage.DONE)


class Controller:
    """The Serve deployment around the loop: one replica, restarted by Serve when it dies."""

    def __init__(self, config: Config, policy: DeploymentHandle) -> None:
        self._tick_s = config.loop.tick_s
        self._loop = Loop(config, policy)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            time.sleep(self._tick_s)
            try:
                self._loop.step()
            except LostLease:
                continue
            except sa.exc.SQLAlchemyError as error:  # an outage of the store stops changes; the next tick tries again
                log.warning("the controller cannot reach the store: %s", error)

    def check_health(self) -> None:
        """Called by Serve, which replaces a controller whose thread ended."""
        if not self._thread.is_alive():
            raise RuntimeError("the controller's loop ended with an error; see its log")
