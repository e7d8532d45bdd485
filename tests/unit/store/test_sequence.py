"""The order of the store: numbers rise, and where feedback is said to be all there, none comes in below any more."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from kto_ray.feedback.quarantine import Why
from kto_ray.store import Store, completions, feedback, labels, quarantine, sequence
from tests.support.rows import completion, thumb


def settled(store: Store) -> int:
    with store.read() as tx:
        return sequence.settled(tx)


def test_numbers_rise_whoever_takes_them(store: Store) -> None:
    with store.write() as tx:
        before = sequence.last(tx)
        taken = sequence.take(tx, 3) + sequence.take(tx, 2, events=False)
        assert taken == list(range(before + 1, before + 6)) and sequence.last(tx) == before + 5
    assert settled(store) == before + 5


@pytest.mark.parametrize("store", ["postgresql"], indirect=True)  # SQLite's writers are one after the other
def test_a_number_that_is_taken_is_waited_for_before_its_event_is_there(store: Store) -> None:
    with ThreadPoolExecutor(1) as pool:
        with store.write() as tx:
            [taken] = sequence.take(tx)
            asked: Future[int] = pool.submit(settled, store)
            threading.Event().wait(0.3)
            assert not asked.done()
        assert asked.result(10) >= taken


@pytest.mark.parametrize("store", ["postgresql"], indirect=True)
def test_nobody_waits_while_what_has_settled_is_read(store: Store) -> None:
    with store.write() as tx:
        completions.insert(tx, completion())
    with store.read() as reading, ThreadPoolExecutor(1) as pool:
        number = sequence.settled(reading)

        def say() -> None:
            with store.write() as tx:
                feedback.record(tx, thumb("f1"))

        pool.submit(say).result(5)
        assert feedback.left_out(reading, number).newest_at == 0.0, "what comes later is behind the number"


def test_under_one_number_comes_in_what_is_joined_or_released_later_and_nothing_else(store: Store) -> None:
    with store.write() as tx:
        completions.insert(tx, completion("c1"))
        for name, of in (("f1", "c1"), ("early", "c2")):
            feedback.record(tx, thumb(name, of))
        quarantine.hold(tx, ["f1"], Why.BURST)
        until = sequence.settled(tx)
        assert labels.examples(tx, ("", None), until) == []
        quarantine.release(tx, ["f1"])
        for name in ("c2", "c3"):
            completions.insert(tx, completion(name))
        feedback.record(tx, thumb("late", "c3"))
        assert [one.completion_id for one in labels.examples(tx, ("", None), until)] == ["c1", "c2"]
