"""What waits in spools is erased as well: those of dead processes are drained here, and what stays is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from kto_ray.config import Config
from kto_ray.provenance import spooled
from kto_ray.provenance.erasure import erase
from kto_ray.records.erasure import ErasedRows, Subject
from kto_ray.records.feedback import Feedback, FeedbackKind
from kto_ray.store import Store, completions, feedback
from kto_ray.store.spool import Spool
from kto_ray.store.writer import drain_one
from tests.support.provenance import completion, thumb

ANN = Subject("user", "ann")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config.model_validate({"home": str(tmp_path / "home"), "store_url": f"sqlite:///{tmp_path}/kto.db"})


def fill(config: Config) -> Spool:
    """A spool that holds ann's answer and thumb, and bob's answer."""
    made = Spool(Path(config.spool) / "0")
    made.append([completion("of-ann", "ann"), thumb("f1", "of-ann", "ann"), completion("of-bob", "bob")])
    return made


def test_what_a_dead_process_left_comes_to_the_store_and_goes(sqlite_store: Store, config: Config) -> None:
    fill(config).close()
    done = erase(sqlite_store, config, ANN)
    assert (done.rows, done.remains) == (ErasedRows(1, 1, 0), ())
    with sqlite_store.read() as tx:
        assert completions.get(tx, "of-ann") is None and completions.get(tx, "of-bob") is not None
    assert [path.name for path in Path(config.spool).rglob("*") if path.is_file()] == ["lock"]


def test_what_a_gateway_does_not_bring_is_told(
    sqlite_store: Store, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spooled, "PATIENCE_S", 0.0)
    live = fill(config)
    with sqlite_store.write() as tx:
        completions.insert(tx, replace(completion("older", "ann")))
    [said] = erase(sqlite_store, config, ANN).remains
    assert "000000000001.log has not come to the store" in said
    assert spooled.bring(sqlite_store, Path(config.spool), Subject("user", "carl"), config.feedback) == ()
    assert spooled.bring(sqlite_store, Path(config.spool), Subject("completion", "of-ann"), config.feedback) != ()
    live.close()


def test_what_the_store_refused_is_blotted_out_and_what_is_damaged_told(sqlite_store: Store, config: Config) -> None:
    folder = Path(config.spool) / "0"
    held = Spool(folder)
    held.refuse(replace(completion("bad", "ann"), text="ann's secret"), "too long")
    held.refuse(completion("other", "bob"), "too long")
    held.append([completion("of-ann", "ann"), completion("of-bob", "bob")])
    held.close()
    (folder / "000000000001.log").rename(folder / "000000000001.damaged")
    [said] = spooled.bring(sqlite_store, Path(config.spool), ANN, config.feedback)
    assert "000000000001.damaged is damaged, and holds some of it" in said
    refused = folder / "refused.jsonl"
    [left] = [json.loads(line) for line in refused.read_text().splitlines() if line.strip()]
    assert left["id"] == "other" and "secret" not in refused.read_text()
    spooled.bring(sqlite_store, Path(config.spool), Subject("completion", "other"), config.feedback)
    assert refused.read_text().strip() == ""


def test_a_line_that_cannot_be_read_is_told(sqlite_store: Store, config: Config) -> None:
    held = Spool(Path(config.spool) / "0")
    held.refuse(completion("bad", "ann"), "too long")
    refused = held.folder / "refused.jsonl"
    whole = refused.read_bytes()
    refused.write_bytes(b'{"why": "to\n' + whole + b"{")
    held.close()
    said, torn = spooled.bring(sqlite_store, Path(config.spool), ANN, config.feedback)
    assert "refused.jsonl, from byte 0: 11 bytes cannot be read" in said
    assert f"refused.jsonl, from byte {12 + len(whole)}: 1 bytes cannot be read" in torn
    assert refused.read_bytes() == b'{"why": "to\n' + b" " * (len(whole) - 1) + b"\n{"


def nameless(name: str, of: str, text: str) -> Feedback:
    return replace(thumb(name, of, None), kind=FeedbackKind.EDIT, value=None, text=text)


def test_what_names_nobody_and_lies_on_an_answer_to_the_user_is_theirs(
    sqlite_store: Store, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spooled, "PATIENCE_S", 0.0)
    with sqlite_store.write() as tx:
        completions.insert(tx, completion("stored", "ann"))
    live = Spool(Path(config.spool) / "0")
    for number, of in enumerate(("stored", "spooled", "of-bob")):
        live.refuse(nameless(f"f{number}", of, f"said of {of}"), "too long")
    live.append([nameless("g1", "of-bob", "x"), nameless("g2", "stored", "x")])
    assert len(spooled.bring(sqlite_store, Path(config.spool), ANN, config.feedback)) == 1
    assert "said of stored" not in (live.folder / "refused.jsonl").read_text()
    live.append([completion("spooled", "ann")])
    spooled.bring(sqlite_store, Path(config.spool), ANN, config.feedback)
    [left] = [line for line in (live.folder / "refused.jsonl").read_text().splitlines() if line.strip()]
    assert "said of of-bob" in left
    live.close()


def test_a_later_turn_that_waits_is_waited_for(
    sqlite_store: Store, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spooled, "PATIENCE_S", 0.0)
    quote = ({"role": "assistant", "content": "Hello."},)
    with sqlite_store.write() as tx:
        completions.insert(tx, completion("first", "ann"))
    live = Spool(Path(config.spool) / "0")
    live.append([completion("of-bob", "bob", messages=quote)])
    first = Subject("completion", "first")
    assert spooled.bring(sqlite_store, Path(config.spool), first, config.feedback) == ()
    live.append([completion("second", "ann", messages=quote)])
    assert len(spooled.bring(sqlite_store, Path(config.spool), first, config.feedback)) == 1
    live.close()


def test_a_damaged_file_of_which_a_part_cannot_be_read_is_told(sqlite_store: Store, config: Config) -> None:
    held = Spool(Path(config.spool) / "0")
    held.append([completion("of-bob", "bob"), completion("of-ann", "ann")])
    held.close()
    [path] = held.folder.glob("*.log")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with sqlite_store.write() as tx:
        completions.insert(tx, completion("older", "ann"))
    [said] = erase(sqlite_store, config, ANN).remains
    assert "000000000001.damaged is damaged, and may hold some of it" in said


@pytest.mark.parametrize("embedded", [True, False])
def test_spools_of_other_machines_are_told(
    store: Store, config: Config, monkeypatch: pytest.MonkeyPatch, embedded: bool
) -> None:
    with store.write() as tx:
        completions.insert(tx, completion("older", "ann"))
    remains = erase(store, config.model_copy(update={"embedded": embedded}), ANN).remains
    assert any("spools of gateways on other machines" in said for said in remains) is not embedded


def test_what_was_refused_is_given_to_the_store_once_more(sqlite_store: Store, config: Config) -> None:
    held = Spool(Path(config.spool) / "0")
    for entry in (thumb("f1", "of-ann", "ann"), completion("of-ann", "ann"), thumb("f2", "of-ann", "ann")):
        held.refuse(entry, "the table was odd")
    held.refuse(replace(thumb("f3", "of-ann", "ann"), comment="long" * 9999), "too long")
    with (held.folder / "refused.jsonl").open("a") as file:
        file.write("{torn\n")
    assert spooled.retry(sqlite_store, Path(config.spool), config.feedback) == (3, 2)
    assert spooled.retry(sqlite_store, Path(config.spool), config.feedback) == (0, 2)
    with sqlite_store.read() as tx:
        assert [event.id for event in feedback.events(tx, "of-ann")] == ["f1", "f2"]
    assert spooled.retry(sqlite_store, Path(config.spool) / "none", config.feedback) == (0, 0)
    held.close()


def test_what_comes_too_late_is_told_by_how_it_is_erased_then(
    sqlite_store: Store, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spooled, "PATIENCE_S", 0.0)
    with sqlite_store.write() as tx:
        completions.insert(tx, completion("stored", "ann"))
    live = Spool(Path(config.spool) / "0")
    live.append([nameless("f1", "stored", "secret"), thumb("f2", "of-bob", "ann")])
    [said] = erase(sqlite_store, config, ANN).remains
    assert said.endswith("erase again when it has, and completion stored by its id")
    while drain_one(sqlite_store, live, config.feedback):
        continue
    assert erase(sqlite_store, config, ANN).rows == ErasedRows(0, 1, 0)
    assert erase(sqlite_store, config, Subject("completion", "stored")).rows == ErasedRows(0, 0, 1)
    live.close()
