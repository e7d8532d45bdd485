"""The spool is drained in order, once, and what of it cannot be stored holds up nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from kto_ray.config.capture import FeedbackSection
from kto_ray.records.completions import Completion, ExternalRef
from kto_ray.records.feedback import Feedback
from kto_ray.store import Store, completions, labels, writer
from kto_ray.store.spool import LOCK, REFUSED, Entry, Spool
from kto_ray.store.tallies import Tally
from kto_ray.store.together import runs
from kto_ray.store.writer import Writer, drain_one
from tests.support.rows import completion, thumb
from tests.unit.store.test_writer import arrived


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


def test_what_the_store_refuses_from_the_spool_is_set_aside(store: Store, spool: Spool) -> None:
    spool.append([thumb("f1", idempotency_key="k", body_hash="a")])
    spool.append([thumb("f2", idempotency_key="k", body_hash="b"), completion("c1")])
    pen = Writer(store, spool)
    assert arrived(store, Tally(completions=1, stored=1, up=1, came=1))
    pen.close()
    assert '"f2"' in (spool.folder / REFUSED).read_text()


def turn(number: int) -> Completion:
    return completion(f"c{number}", external=ExternalRef("web", "chat", f"m{number}"))


def of_the_chat(name: str, value: bool) -> Feedback:
    return thumb(name, None, value, external=ExternalRef("web", "chat"))


def test_what_was_said_of_a_conversation_means_the_turn_that_was_the_last_then(store: Store, spool: Spool) -> None:
    spool.append([turn(1)])
    spool.append([of_the_chat("f1", False), turn(2), of_the_chat("f2", True)])
    while drain_one(store, spool, FeedbackSection()):
        pass
    with store.read() as tx:
        assert [one.verdict.value for name in ("c1", "c2") for one in labels.of(tx, name)] == ["down", "up"]


def test_a_batch_is_cut_where_an_order_within_it_counts_and_nowhere_else() -> None:
    def sizes(*entries: Entry) -> list[int]:
        return [len(some) for some in runs(entries, 4)]

    other = completion("d1", external=ExternalRef("web", "other", "m1"))
    assert sizes(turn(1), turn(2), of_the_chat("f1", True), other) == [4]
    assert sizes(turn(1), of_the_chat("f1", True), turn(2), of_the_chat("f2", True), turn(3)) == [2, 2, 1]
    assert sizes(*[completion(f"c{i}") for i in range(9)]) == [4, 4, 1]
    assert sizes() == []


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (completion("c\0"), "NUL"),
        (completion("c2", prompt_tokens=2**70), "int"),
        (completion("c2", model=None), "NULL|null"),
    ],
)
def test_what_no_store_takes_is_refused(store: Store, spool: Spool, entry: Completion, why: str) -> None:
    if store.sqlite and "\0" in entry.id:
        pytest.skip("SQLite takes it")
    spool.append([entry, completion("c1")])
    while drain_one(store, spool, FeedbackSection()):
        pass
    assert re.search(why, json.loads((spool.folder / REFUSED).read_text())["why"])
    assert arrived(store, Tally(completions=1))


def test_what_is_wrong_with_one_dead_spool_holds_up_neither_the_others_nor_ours(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a-bad", "b-good"):
        left = Spool(tmp_path / name)
        left.append([completion(name)])
        left.close()
    drain = writer.drain_one

    def odd(to: Store, left: Spool, rules: FeedbackSection) -> bool:
        if left.folder.name == "a-bad":
            raise KeyError("a bug")
        return drain(to, left, rules)

    monkeypatch.setattr(writer, "drain_one", odd)
    (tmp_path / "c-unreadable").mkdir()
    (tmp_path / "c-unreadable" / "1.log").touch()
    (tmp_path / "c-unreadable" / LOCK).mkdir()
    pen = Writer(store, Spool(tmp_path / "ours"))
    assert arrived(store, Tally(completions=1))
    assert pen._drainer.is_alive() and pen.keep(completion("c1")).result(10) is None
    pen.close()


def test_what_is_drained_twice_is_stored_once(store: Store, tmp_path: Path) -> None:
    for _ in range(2):  # killed between the commit and the end of the segment
        spool = Spool(tmp_path / "again")
        spool.append([completion("c1"), thumb("f1", "c1"), thumb("early", "unknown")])
        pen = Writer(store, spool)
        pen.close()
    assert arrived(store, Tally(completions=1, stored=2, pending=1, up=1, came=1))
    with store.read() as tx:
        assert completions.get(tx, "c1") == completion("c1")
