"""The system of record, on SQLite and on PostgreSQL: exactly once, joined later, first judgements only."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from kto_ray.config.capture import FeedbackSection
from kto_ray.records.adapters import AdapterVersion
from kto_ray.records.completions import ExternalRef
from kto_ray.records.evaluation import GateDecision, GateReport
from kto_ray.records.feedback import FeedbackKind
from kto_ray.records.replicas import LoadFault, ReplicaReport
from kto_ray.records.requests import NONE, Act, Refused, Request
from kto_ray.records.rollouts import Look, RolloutState, RolloutStatus
from kto_ray.records.rounds import Training
from kto_ray.store import (
    Store,
    adapters,
    completions,
    evaluation,
    feedback,
    joining,
    labels,
    open_store,
    replicas,
    requests,
    rollouts,
    rounds,
    schema,
    tallies,
)
from kto_ray.store.recording import KeyReused, Recorded
from kto_ray.store.tallies import Tally
from tests.support.rows import completion, erase, thumb


def test_a_completion_comes_back_as_it_went_in(store: Store) -> None:
    whole = completion(external=ExternalRef("chat", "k", "m"), task="title", params={"top_p": 0.9}, first_token_s=0.1)
    with store.write() as tx:
        completions.insert(tx, whole)
    with store.read() as tx:
        assert completions.get(tx, "c1") == whole
        assert completions.get(tx, "none") is None


def test_the_same_key_records_once_and_another_body_is_refused(store: Store) -> None:
    first = thumb("f1", idempotency_key="k", body_hash="a")
    with store.write() as tx:
        completions.insert(tx, completion())
        assert feedback.record(tx, first).status is Recorded.RECORDED
        again = feedback.record(tx, replace(first, id="f2"))
        assert (again.status, again.feedback_id) == (Recorded.DUPLICATE, "f1")
        with pytest.raises(KeyReused, match="another body"):
            feedback.record(tx, replace(first, id="f3", body_hash="b"))
    with store.read() as tx:
        assert tallies.total(tx).stored == 1


def test_one_key_from_many_threads_is_stored_once(store: Store) -> None:
    with store.write() as tx:
        completions.insert(tx, completion())
    seen: list[str] = []

    def send(i: int) -> None:
        with store.write() as tx:
            seen.append(feedback.record(tx, thumb(f"f{i}", idempotency_key="k", body_hash="a")).feedback_id)

    threads = [threading.Thread(target=send, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 8 and len(set(seen)) == 1


@pytest.mark.parametrize("by", ["id", "external"])
def test_feedback_before_its_completion_waits_and_is_joined(store: Store, by: str) -> None:
    ref = ExternalRef("chat", "k", "m")
    early = thumb("f1", of="c1") if by == "id" else thumb("f1", of=None, external=ref)
    with store.write() as tx:
        assert feedback.record(tx, early).status is Recorded.PENDING
    with store.read() as tx:
        assert tallies.total(tx) == Tally(stored=1, pending=1)
    with store.write() as tx:
        completions.insert(tx, completion(external=ref))
    with store.read() as tx:
        assert tallies.total(tx) == Tally(completions=1, stored=1, up=1, came=1)
        assert [event.id for event in feedback.events(tx, "c1")] == ["f1"]


def test_joining_mends_what_two_transactions_missed(store: Store) -> None:
    with store.write() as tx:
        feedback.record(tx, thumb("f1"))
    with store.write() as tx:
        completions.insert(tx, completion("other"))
        tx.exec_driver_sql("UPDATE completions SET id = 'c1' WHERE id = 'other'")  # arrived unseen by the event
    with store.read() as tx:
        pending = joining.overlooked(tx)
    assert pending == joining.Overlooked(("f1",), (), "")
    with store.write() as tx:
        joining.join(tx, pending.found, FeedbackSection())
        joining.join(tx, pending.found, FeedbackSection())
    with store.read() as tx:
        assert joining.overlooked(tx) == joining.Overlooked((), (), "")
        assert tallies.total(tx) == Tally(completions=1, stored=1, up=1, came=1)


def test_counts_leave_out_withdrawn_and_tasks(store: Store) -> None:
    with store.write() as tx:
        completions.insert(tx, completion("c1"))
        completions.insert(tx, completion("c2", task="title"))
        feedback.record(tx, thumb("f1", "c1", value=True))
        feedback.record(tx, thumb("f2", "c1", value=False))
        feedback.record(tx, thumb("f3", "c2", value=True))
        feedback.record(tx, thumb("f4", "c1", kind=FeedbackKind.EDIT, value=None, text="Better."))
        assert feedback.withdraw(tx, "f2", 300.0)
        assert not feedback.withdraw(tx, "nope", 300.0)
    with store.read() as tx:
        assert tallies.total(tx) == Tally(completions=2, stored=4, withdrawn=1, edits=1, came=1)
        out = feedback.left_out(tx)
        assert (out.task, out.withdrawn, out.pending) == (1, 1, 0)


def test_key_ranges_cover_every_completion_with_feedback_once(store: Store) -> None:
    with store.write() as tx:
        for i in range(23):
            completions.insert(tx, completion(f"c{i:02}"))
            if i != 5:
                feedback.record(tx, thumb(f"f{i:02}", f"c{i:02}"))
    with store.read() as tx:
        for size in (1, 4, 50):
            ranges = labels.key_ranges(tx, size)
            parts = [labels.with_feedback(tx, *keys) for keys in ranges]
            assert all(0 < sum(len(events) for _, events in part) <= size for part in parts)
            assert len(ranges) == -(-22 // size)
            found = [c.id for part in parts for c, events in part if events]
            assert found == [f"c{i:02}" for i in range(23) if i != 5]


def test_withdrawing_waits_for_an_erasure_and_not_it_for_that(store: Store) -> None:
    """One order of locks: an erasure that holds a completion gets its feedback too, whoever else wants both."""
    with store.write() as tx:
        completions.insert(tx, completion("c1", user="ann"))
        feedback.record(tx, thumb("f1", "c1", user="ann"))

    def withdraw() -> bool:
        with store.write() as tx:
            return feedback.withdraw(tx, "f1", 5.0)

    with ThreadPoolExecutor(1) as other:
        with store.write() as tx:
            labels.lock(tx, ["c1"])
            waiting = other.submit(withdraw)
            time.sleep(0.3)
            erase(tx, "ann")
        assert waiting.result(timeout=30) is False


def test_a_request_of_a_newer_program_is_told_as_text(store: Store) -> None:
    with store.write() as tx:
        tx.execute(schema.requests.insert().values(created_at=1.0, action="freeze"))
        requests.ask(tx, Act.PAUSE, 2.0)
    with store.read() as tx:
        assert [request.act for request in requests.asked(tx)] == ["freeze", Act.PAUSE]


def version(number: int) -> AdapterVersion:
    return AdapterVersion(f"policy@v{number}", number, 1.0, f"/a/{number}", "0" * 64, "s", None, "policy@base", 8)


def test_desired_is_champion_challenger_and_previous(store: Store) -> None:
    with store.write() as tx:
        for number in (1, 2, 3, 4):
            adapters.insert(tx, version(number))
        adapters.set_alias(tx, "champion", "policy@v3", 1.0)
        adapters.set_alias(tx, "challenger", "policy@v4", 1.0)
        adapters.set_alias(tx, "previous", "policy@base", 1.0)
        assert adapters.next_number(tx) == 5
    with store.write() as tx:
        assert [v.name for v in adapters.desired(tx)] == ["policy@v3", "policy@v4"]
        adapters.set_alias(tx, "challenger", None, 2.0)
        assert [v.name for v in adapters.desired(tx)] == ["policy@v3"]
        assert adapters.get(tx, "policy@v3") == version(3)


def test_gates_rounds_rollouts_and_replicas_come_back(store: Store) -> None:
    report = GateReport("policy@v1", "s", 1.0, GateDecision.REJECT, ("why",), {"auc": 0.5}, ({"prompt": "p"},))
    test = RolloutState("r", "policy@base", "policy@v1", "salt", 0, 0.1, RolloutStatus.RUNNING, 1.0, 1.0)
    look = Look("r", 2.0, 0, 3, 1, 2, 2, -0.5, 0.75)
    replica = ReplicaReport("x", "node", 7, ("policy@v1",), 50.0, {"policy@v2": LoadFault("broken", True, 3, 7.5)})
    with store.write() as tx:
        adapters.insert(tx, version(1))
        evaluation.put(tx, report)
        opened = rounds.insert(tx, 5.0)
        rounds.update(tx, opened.to(Training("s"), 6.5))
        rollouts.put(tx, test)
        rollouts.add_look(tx, look)
        replicas.report(tx, replace(replica, held=()), 15.0)
        replicas.report(tx, replica, 15.0)
    paused = replace(test, id="p", status=RolloutStatus.PAUSED, status_at=9.0, asked=("harm", "users"))
    with store.write() as tx:
        rollouts.put(tx, replace(paused, asked=("harm",)))
        rollouts.put(tx, paused)
        assert rollouts.get(tx, "p") == paused
        rollouts.put(tx, replace(paused, status=RolloutStatus.ABORTED))
    with store.read() as tx:
        assert evaluation.get(tx, "policy@v1") == report
        current = rounds.current(tx)
        assert current is not None and current.state == Training("s") and current.stage_s == {"snapshot": 1.5}
        assert rollouts.live(tx) == test
        assert rollouts.looks(tx, "r") == [look] and rollouts.last_look(tx, "r") == look
        [live] = replicas.live(tx, timeout_s=15.0)
        assert replace(live, heartbeat_at=50.0) == replica


def test_requests_are_answered_once(store: Store) -> None:
    with store.write() as tx:
        request = requests.ask(tx, Act.RUN, 1.0)
        assert requests.asked(tx) == [Request(request, Act.RUN)] and requests.answered(tx, request) is None
        requests.answer(tx, request, Refused("not yet"), 2.0)
        assert requests.asked(tx) == [] and requests.answered(tx, request) == Refused("not yet")


def test_a_request_means_what_stood_when_it_was_asked_and_expires(store: Store) -> None:
    test = RolloutState("r", "policy@base", "policy@v1", "salt", 0, 0.1, RolloutStatus.RUNNING, 1.0, 2.0)
    with store.write() as tx:
        requests.ask(tx, Act.PROMOTE, 1.0)
        rollouts.put(tx, test)
        requests.ask(tx, Act.PAUSE, 1.0, expires_s=60.0)
        requests.ask(tx, Act.ABORT, 1.0, target="another", expires_s=-1.0)
        requests.ask(tx, Act.RUN, 1.0)
        requests.ask(tx, Act.END, 1.0)
        rounds.insert(tx, 1.0)
        requests.ask(tx, Act.END, 1.0)
    with store.read() as tx:
        assert requests.asked(tx) == [
            Request(1, Act.PROMOTE, NONE),
            Request(2, Act.PAUSE, "r"),
            Request(3, Act.ABORT, "another", expired=True),
            Request(4, Act.RUN),
            Request(5, Act.END, NONE),
            Request(6, Act.END, "1"),
        ]


def test_a_failed_transaction_leaves_nothing(store: Store) -> None:
    with pytest.raises(RuntimeError), store.write() as tx:
        completions.insert(tx, completion())
        raise RuntimeError("power cut")
    with store.read() as tx:
        assert tallies.total(tx) == Tally()


WRITER = """
import sys
sys.path.insert(0, {root!r})
from tests.support.rows import completion
from kto_ray.store import completions, open_store
store = open_store({url!r})
i = 0
while True:
    with store.write() as tx:
        completions.insert(tx, completion(f"k{{i:06}}"))
    print(i, flush=True)  # acknowledged
    i += 1
"""


def test_what_was_acknowledged_survives_kill_9(sqlite_store: Store) -> None:
    script = WRITER.format(root=str(Path(__file__).parents[3]), url=sqlite_store.url)
    writer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    acknowledged = [int(writer.stdout.readline()) for _ in range(20)]
    os.kill(writer.pid, signal.SIGKILL)
    acknowledged += [int(line) for line in writer.stdout.read().split()]
    writer.wait()
    with sqlite_store.read() as tx:
        assert all(completions.get(tx, f"k{i:06}") is not None for i in acknowledged)


def test_a_store_that_cannot_be_opened_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for url in (f"sqlite:///{tmp_path}/file/kto.db", "postgresql+psycopg://kto:hidden@127.0.0.1:1/kto", "nosuch://x"):
        with pytest.raises(ValueError, match="cannot be opened") as error:
            open_store(url)
        assert "hidden" not in str(error.value)
    with pytest.raises(ValueError, match="must survive"):
        open_store("sqlite://")
