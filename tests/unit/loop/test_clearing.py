"""What ended trainings hold is taken back beside the tick, again until it is done."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from kto_ray.config import Config
from kto_ray.loop import clearing, work
from kto_ray.loop.clearing import Clearing
from kto_ray.loop.step import Loop
from kto_ray.paths import StorageAway
from kto_ray.records.rounds import Ended, Outcome, Stage
from kto_ray.store import Store, rounds
from tests.support.loop import Jobs, labels, until

AWAY = StorageAway("object storage cannot be reached")


class Storage:
    """Which the clearing of a run waits for, and may fail at."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.error: BaseException | None = None
        self.asked: list[str] = []
        self.done: list[str] = []

    def clear(self, _: Config, run: str) -> None:
        self.asked.append(run)
        assert self.answers.wait(30)
        if self.error is not None:
            raise self.error
        self.done.append(run)


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    made = Storage()
    monkeypatch.setattr(work, "clear", made.clear)
    yield made
    made.answers.set()


def eventually(what: Callable[[], bool], look: Callable[[], None]) -> None:
    for _ in range(1000):
        look()
        if what():
            return
        time.sleep(0.01)
    raise AssertionError("it never came")


def test_a_storage_that_hangs_holds_up_no_tick(
    loop: Loop, sqlite_store: Store, jobs: Jobs, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kto_ray.loop.work.cancel", lambda _: None)
    labels(sqlite_store)
    until(loop, sqlite_store, Stage.TRAIN)
    with monkeypatch.context() as patch:
        patch.setattr("ray.wait", lambda refs, timeout: ([], refs))
        loop.step()
        with sqlite_store.write() as tx:
            current = rounds.current(tx)
            assert current is not None
            tx.exec_driver_sql("UPDATE rounds SET stage_started_at = 1")
        began = time.monotonic()
        loop.step()
        loop.step()
        assert time.monotonic() - began < 5
    with sqlite_store.read() as tx:
        ended = rounds.get(tx, 1)
    assert ended is not None and isinstance(ended.state, Ended) and ended.state.outcome is Outcome.FAILED
    eventually(lambda: storage.asked == ["round-1"], loop._clearing.look)
    assert storage.done == []
    storage.answers.set()
    eventually(lambda: storage.done == ["round-1"], loop._clearing.look)


def test_whoever_takes_over_clears_the_round_before_as_well(
    loop: Loop, config: Config, sqlite_store: Store, storage: Storage
) -> None:
    """Its controller was killed while the storage was away, and another round has begun."""
    storage.answers.set()
    with sqlite_store.write() as tx:
        first = rounds.insert(tx, 1.0)
        tx.exec_driver_sql("UPDATE rounds SET snapshot = 's', stage = 'train'")
        training = rounds.get(tx, first.id)
        assert training is not None
        rounds.update(tx, training.ended(Outcome.FAILED, "it was late", 2.0))
        rounds.insert(tx, 3.0)
    loop.step()
    eventually(lambda: storage.done == ["round-1"], loop._clearing.look)


def test_what_failed_is_tried_again_after_a_rest_and_others_meanwhile(
    config: Config, storage: Storage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(clearing, "REST_S", 0.1)
    storage.answers.set()
    storage.error = AWAY
    tried = Clearing(config)
    tried.add(["round-1", "round-2"])
    eventually(lambda: len(storage.asked) > 3, tried.look)
    assert set(storage.asked[:2]) == {"round-1", "round-2"} and storage.done == []
    storage.error = None
    eventually(lambda: set(storage.done) == {"round-1", "round-2"}, tried.look)
    tried.look()
    tries = len(storage.asked)
    time.sleep(0.2)
    tried.look()
    assert len(storage.asked) == tries, "once done it is done"
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        f"what the workers of round-1 hold is not taken back yet, and will be tried again: StorageAway: {AWAY}"
    ]


def test_it_rests_between_two_tries(config: Config, storage: Storage) -> None:
    storage.answers.set()
    storage.error = AWAY
    tried = Clearing(config)
    tried.add(["round-1"])
    eventually(lambda: tried._trying is None, tried.look)
    for _ in range(20):
        tried.look()
    assert storage.asked == ["round-1"]


@pytest.mark.parametrize("hangs", [False, True])
def test_it_gives_up_in_words(
    config: Config, storage: Storage, hangs: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    storage.error = AWAY
    tried = Clearing(config)
    tried.add(["round-1"])
    if not hangs:
        storage.answers.set()
        eventually(lambda: tried._trying is None, tried.look)
    monkeypatch.setattr(clearing, "LIMIT_S", 0.0)
    tried.look()
    [told] = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert "the workers of round-1 hold could not be taken back" in told
    assert told.endswith("it still waits for the storage" if hangs else f"StorageAway: {AWAY}")
    storage.answers.set()
    eventually(lambda: tried._trying is None, tried.look)
    assert tried._left == {} and storage.asked == ["round-1"]


def test_a_fault_that_nobody_named_is_told(config: Config, storage: Storage) -> None:
    storage.answers.set()
    storage.error = ZeroDivisionError()
    tried = Clearing(config)
    with pytest.raises(ZeroDivisionError):
        tried.add(["round-1"])
        eventually(lambda: False, tried.look)
