"""One tick on a real store, the jobs made up: what was decided is there, all of it, and a lease keeps two apart."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import sqlalchemy as sa

from kto_ray.config import Config
from kto_ray.loop.actor import Controller
from kto_ray.loop.lease import LostLease
from kto_ray.loop.seen import Failed
from kto_ray.loop.step import DAY_S, Loop
from kto_ray.paths import StorageAway
from kto_ray.provenance.erasure import erase
from kto_ray.records.erasure import AffectedRound, Subject
from kto_ray.records.requests import Act, Done, Refused
from kto_ray.records.rounds import Ended, Outcome, Stage
from kto_ray.records.training import TrainProgress
from kto_ray.rollout import holdback
from kto_ray.store import (
    Store,
    adapters,
    completions,
    evaluation,
    feedback,
    quarantine,
    requests,
    rollouts,
    rounds,
    schema,
    tallies,
    trainings,
)
from tests.support.loop import V1, Jobs, cleared, hold, labels, until
from tests.support.provenance import completion, thumb


def test_a_job_is_done_once_also_where_another_move_comes_first(loop: Loop, sqlite_store: Store, jobs: Jobs) -> None:
    """The gate has its report in the tick in which a holdback's day is over."""
    labels(sqlite_store)
    hold(sqlite_store, V1)
    until(loop, sqlite_store, Stage.GATE)
    while "examine" not in jobs.started:
        loop.step()
    watched = holdback.start(
        loop._config.rollout, "policy@base", "policy@v0-000000", "holdback-1", "salt", time.time() - DAY_S - 1
    )
    assert watched is not None
    with sqlite_store.write() as tx:
        rollouts.put(tx, watched)
    loop.step()
    with sqlite_store.read() as tx:
        current = rounds.current(tx)
        assert current is not None and current.stage is Stage.GATE, "the holdback's day came first"
    until(loop, sqlite_store, Stage.ROLLOUT)
    assert jobs.started.count("examine") == 1


def test_a_round_walks_to_its_test(loop: Loop, sqlite_store: Store, jobs: Jobs) -> None:
    labels(sqlite_store, 7)
    loop.step()
    assert jobs.started == []
    labels_more = completion("more", "u9")
    with sqlite_store.write() as tx:
        completions.insert(tx, labels_more)
        feedback.record(tx, thumb("f-more", "more", "u9"))
    loading = until(loop, sqlite_store, Stage.LOAD)
    assert jobs.started == ["seal", "learn"] and loading.state.adapter == V1
    loop.step()
    with sqlite_store.read() as tx:
        assert adapters.aliases(tx, "policy@base")["challenger"] == V1
        assert [v.name for v in adapters.desired(tx)] == [V1]
        run = trainings.get(tx, "round-1")
        assert run is not None and run.adapter == V1 and run.history == ({"step": 1, "loss": 0.5},)
        current = rounds.current(tx)
        assert current is not None and current.stage is Stage.LOAD, "no replica holds it yet"
    hold(sqlite_store, V1)
    testing = until(loop, sqlite_store, Stage.ROLLOUT)
    with sqlite_store.read() as tx:
        test = rollouts.live(tx)
        assert test is not None and (test.id, test.challenger) == (testing.state.rollout, V1)
        assert evaluation.get(tx, V1) is not None and rounds.new_labels(tx) == 0


def test_a_stage_begins_as_soon_as_the_one_before_has_ended(loop: Loop, sqlite_store: Store, jobs: Jobs) -> None:
    labels(sqlite_store)
    told = [(loop.step(), len(jobs.started)) for _ in range(5)]
    assert told == [(True, 0), (False, 1), (True, 1), (False, 2), (True, 2)], "begun; seal; sealed; learn; learnt"
    assert not loop.step(), "no replica holds it yet"
    hold(sqlite_store, V1)
    jobs.results["examine"] = Failed("RayError: a node was lost", hopeless=False)
    assert [loop.step() for _ in range(4)] == [True, False, False, False], "what failed is tried again a tick later"


def test_another_controller_goes_on_where_one_was_killed(
    loop: Loop, config: Config, sqlite_store: Store, jobs: Jobs
) -> None:
    labels(sqlite_store)
    until(loop, sqlite_store, Stage.TRAIN)
    loop.step()  # the job runs, and its process dies with the controller
    other = Loop(config, policy=None)
    with pytest.raises(LostLease):
        other.step()
    with sqlite_store.write() as tx:
        tx.exec_driver_sql("UPDATE leases SET expires_at = 0")
    until(other, sqlite_store, Stage.LOAD)
    assert jobs.started == ["seal", "learn", "learn"]


def test_a_failure_is_tried_again_and_a_hopeless_one_is_not(loop: Loop, sqlite_store: Store, jobs: Jobs) -> None:
    labels(sqlite_store)
    jobs.results["seal"] = Failed("RayError: a node was lost", hopeless=False)
    loop.step()
    loop.step()
    loop.step()
    with sqlite_store.read() as tx:
        current = rounds.current(tx)
        assert current is not None and (current.attempts, current.failure) == (1, "RayError: a node was lost")
    jobs.results["seal"] = Failed("ValueError: one class", hopeless=True)
    ended = until(loop, sqlite_store, Stage.DONE)
    assert isinstance(ended.state, Ended) and ended.state.outcome is Outcome.FAILED
    assert ended.state.reason == "snapshot: ValueError: one class"


def test_a_round_survives_a_storage_that_is_away(
    loop: Loop, sqlite_store: Store, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a job, as often as it likes, and where the progress of one is read."""
    labels(sqlite_store)
    until(loop, sqlite_store, Stage.TRAIN)
    whole, away = jobs.results["learn"], StorageAway("object storage cannot be reached")
    jobs.results["learn"] = Failed.of(away)
    with monkeypatch.context() as patch:
        patch.setattr("kto_ray.loop.step.REST_S", 0.0)
        for _ in range(12):
            loop.step()
    with sqlite_store.read() as tx:
        current = rounds.current(tx)
    assert current is not None and (current.stage, current.attempts) == (Stage.TRAIN, 0)
    assert current.failure == "StorageAway: object storage cannot be reached" and jobs.started.count("learn") > 3
    jobs.results["learn"] = whole
    loop._rests_until = time.monotonic() + 60
    started = len(jobs.started)
    loop.step()
    assert len(jobs.started) == started, "it rests before it begins again"
    loop._rests_until = 0.0
    loop.step()
    with monkeypatch.context() as patch:
        patch.setattr("ray.wait", lambda refs, timeout: ([], refs))
        patch.setattr("kto_ray.loop.step.read_progress", Mock(side_effect=away))
        loop.step()
    assert until(loop, sqlite_store, Stage.LOAD).failure is None


@pytest.mark.parametrize(
    ("error", "away"),
    [
        (StorageAway("gone"), True),
        (RuntimeError("training worker 0 failed: StorageAway: gone"), True),
        (OSError("When getting information for key: AWS Error NETWORK_CONNECTION during HeadObject"), True),
        (OSError("AWS Error UNKNOWN (HTTP status 503) during HeadObject operation: No response body"), True),
        (OSError("AWS Error SLOW_DOWN during PutObject operation"), True),
        (OSError("AWS Error ACCESS_DENIED during PutObject operation (HTTP status 403)"), False),
        (OSError(28, "No space left on device"), False),
        (FileNotFoundError("no such key"), False),
    ],
)
def test_a_failure_is_the_storages_by_its_words(error: Exception, away: bool) -> None:
    """They are all that comes through Ray's processes."""
    assert Failed.of(error).away is away


def test_what_cannot_be_persisted_is_worked_out_anew(loop: Loop, sqlite_store: Store, jobs: Jobs) -> None:
    """A version was published by hand while the round trained, under the number that the round had drawn."""
    labels(sqlite_store)
    until(loop, sqlite_store, Stage.TRAIN)
    loop.step()
    by_hand = replace(jobs.results["learn"].version, name="policy@v1-bbbbbb")
    with sqlite_store.write() as tx:
        adapters.insert(tx, by_hand)
    with pytest.raises(sa.exc.IntegrityError):
        loop.step()
    next_one = replace(jobs.results["learn"].version, name="policy@v2-aaaaaa", number=2)
    jobs.results["learn"] = replace(jobs.results["learn"], version=next_one)
    loading = until(loop, sqlite_store, Stage.LOAD)
    assert loading.state.adapter == "policy@v2-aaaaaa" and jobs.started == ["seal", "learn", "learn"]


def test_progress_is_shown_while_operators_ask_and_once_a_step(
    loop: Loop, sqlite_store: Store, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels(sqlite_store)
    until(loop, sqlite_store, Stage.TRAIN)
    loop.step()
    monkeypatch.setattr("ray.wait", lambda refs, timeout: ([], refs))
    figures: Any = {**dict.fromkeys(TrainProgress.__slots__, 1.0), "step": 3, "steps": 9}
    monkeypatch.setattr("kto_ray.loop.step.read_progress", lambda *_: TrainProgress(**figures))
    with sqlite_store.write() as tx:
        asked = [requests.ask(tx, Act.PAUSE, 1.0) for _ in range(3)]
    loop.step()
    with sqlite_store.read() as tx:
        run = trainings.get(tx, "round-1")
        assert run is not None and run.figures["step"] == 3
        assert all(requests.answered(tx, request) for request in asked), "all of them, at once"
    monkeypatch.setattr(trainings, "put", lambda *_: pytest.fail("nothing has moved"))
    loop.step()


def test_what_only_a_newer_program_knows_is_refused(loop: Loop, sqlite_store: Store) -> None:
    with sqlite_store.write() as tx:
        tx.execute(schema.requests.insert().values(created_at=1.0, action="freeze"))
    loop.step()
    with sqlite_store.read() as tx:
        assert requests.answered(tx, 1) == Refused("this version of kto_ray does not know 'freeze'")


def test_failures_are_logged_as_such(
    loop: Loop, sqlite_store: Store, jobs: Jobs, caplog: pytest.LogCaptureFixture
) -> None:
    labels(sqlite_store)
    jobs.results["seal"] = Failed("ValueError: one class", hopeless=True)
    with caplog.at_level("INFO"):
        until(loop, sqlite_store, Stage.DONE)
    assert [r.getMessage() for r in caplog.records if r.levelname == "ERROR"] == [
        "round 1 ends: failed (snapshot: ValueError: one class)"
    ]


def test_an_operator_is_obeyed_and_answered_at_once(loop: Loop, sqlite_store: Store) -> None:
    labels(sqlite_store, 1)
    with sqlite_store.write() as tx:
        request = requests.ask(tx, Act.RUN, time.time())
    loop.step()
    with sqlite_store.read() as tx:
        assert requests.answered(tx, request) == Done("round 1 begins")
        assert rounds.current(tx) is not None


def test_a_training_ends_when_somebody_in_its_snapshot_is_erased(
    loop: Loop, config: Config, sqlite_store: Store, jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped: list[Any] = []
    monkeypatch.setattr("kto_ray.loop.work.cancel", stopped.append)
    monkeypatch.setattr("kto_ray.loop.work.clear", lambda config, run: stopped.append(run))
    labels(sqlite_store)
    until(loop, sqlite_store, Stage.TRAIN)
    with monkeypatch.context() as patch:
        patch.setattr("ray.wait", lambda refs, timeout: ([], refs))
        loop.step()  # it trains
        with sqlite_store.write() as tx:
            tx.execute(schema.snapshots.update().values(uri=f"{tmp_path}/snapshot-1"))
        done = erase(sqlite_store, config, Subject("completion", "c1"))
        assert done.rounds == (AffectedRound(1, "train"),) and jobs.started == ["seal", "learn"]
        loop.step()
    with sqlite_store.read() as tx:
        [ended, begun] = rounds.latest(tx, 2)
        assert isinstance(ended.state, Ended) and ended.state.outcome is Outcome.ABORTED
        assert (begun.id, begun.stage) == (2, Stage.SNAPSHOT), "on what is left"
        assert [requests.answered(tx, number) for number in (1, 2)] == [
            Done("round 1 ends; challenger is nobody"),
            Done("round 2 begins"),
        ]
        assert adapters.every(tx) == []
    cleared(loop)
    assert stopped == ["learn", "round-1"] and jobs.started == ["seal", "learn", "seal"]


def test_a_request_waits_while_the_files_it_hangs_on_are_away(
    loop: Loop, sqlite_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sqlite_store.write() as tx:
        request = requests.ask(tx, Act.FORGET, time.time())

    def away(*_: object) -> None:
        raise OSError("the bucket is away")

    with monkeypatch.context() as patch:
        patch.setattr("kto_ray.loop.step.tainted", away)
        loop.step()
    with sqlite_store.read() as tx:
        assert requests.answered(tx, request) is None
    loop.step()
    with sqlite_store.read() as tx:
        assert isinstance(requests.answered(tx, request), Done)


def test_feedback_that_two_transactions_missed_is_joined(loop: Loop, sqlite_store: Store) -> None:
    with sqlite_store.write() as tx:
        feedback.record(tx, replace(thumb("late", "c1", "ann"), created_at=time.time()))
        completions.insert(tx, completion("other", "ann"))
        tx.exec_driver_sql("UPDATE completions SET id = 'c1' WHERE id = 'other'")  # arrived unseen by the event
    loop.step()
    with sqlite_store.read() as tx:
        assert [event.id for event in feedback.events(tx, "c1")] == ["late"]


def test_feedback_whose_completion_never_came_waits_no_longer(loop: Loop, sqlite_store: Store) -> None:
    with sqlite_store.write() as tx:
        feedback.record(tx, replace(thumb("old", "c1", "ann"), created_at=time.time() - 31 * DAY_S))
        feedback.record(tx, replace(thumb("new", "c1", "ann"), created_at=time.time()))
    loop.step()
    with sqlite_store.read() as tx:
        assert (tallies.total(tx).pending, tallies.total(tx).orphans) == (1, 1)


def test_newcomers_of_the_stores_youth_wait_once_it_is_settled(loop: Loop, sqlite_store: Store) -> None:
    """What they said starts no round; those who come back are heard."""
    with sqlite_store.write() as tx:
        for name, user, day in (
            ("a", "ann", 0),
            ("b", "bob", 0),
            ("c", "bob", 8),
            ("once", "cid", 9),
            ("d", "ann", 15),
        ):
            completions.insert(tx, completion(name, user))
            feedback.record(tx, replace(thumb(f"f-{name}", name, user), created_at=day * DAY_S))
        assert tallies.total(tx).labels == 5
    loop.step()
    with sqlite_store.read() as tx:
        assert [event.id for event in quarantine.waiting(tx)] == ["f-once"]
        assert (tallies.total(tx).labels, tallies.total(tx).held) == (4, 1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_controller_says_when_its_loop_has_ended(config: Config, sqlite_store: Store, jobs: Jobs) -> None:
    controller = Controller(config, policy=None)
    controller.check_health()
    controller._loop.step = None  # type: ignore[method-assign, assignment]
    controller._thread.join(timeout=10)
    with pytest.raises(RuntimeError, match="loop ended"):
        controller.check_health()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_controller_rests_unless_there_is_more_to_do(
    config: Config, sqlite_store: Store, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after an error that came where there was more."""
    away = sa.exc.OperationalError("SELECT 1", {}, Exception("the store is away"))
    told, seen = iter([True, True, False, True, away]), []

    def step(self: Loop) -> bool:
        seen.append("step")
        if isinstance(answer := next(told), Exception):
            raise answer
        return bool(answer)

    monkeypatch.setattr(Loop, "step", step)
    monkeypatch.setattr("kto_ray.loop.actor.time", Mock(sleep=lambda s: seen.append("rest"), monotonic=time.monotonic))
    Controller(config, policy=None)._thread.join(timeout=10)
    assert seen == ["rest", "step", "step", "step", "rest", "step", "step", "rest", "step"]
