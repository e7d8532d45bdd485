"""An answer stands in the turns after it: with it go those that quote it, of the same user, and nobody else's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kto_ray.config import Config
from kto_ray.provenance.erasure import erase, reach_of
from kto_ray.provenance.later import quotes
from kto_ray.provenance.retention import DAY_S, keep
from kto_ray.records.completions import Completion, ExternalRef
from kto_ray.records.erasure import ErasedRows, Subject
from kto_ray.store import Store, adapters, completions, feedback, snapshots, users
from tests.support import rows
from tests.support.provenance import adapter, seal, thumb

TEXT = 'Paris, "the city"\nof 100% lights: É.'
NOW = 1000 * DAY_S
ONE = Subject("completion", "c1")


def turn(name: str, quoted: Any = None, text: str = TEXT, **changes: Any) -> Completion:
    hi = {"role": "user", "content": "Hi"}
    before = (hi, {"role": "assistant", "content": quoted}) if quoted is not None else ()
    return rows.completion(name, messages=(*before, hi), text=text, created_at=1.0, **changes)


def put(store: Store, *turns: Completion) -> None:
    with store.write() as tx:
        for one in turns:
            completions.insert(tx, one)


def left(store: Store) -> list[str]:
    with store.read() as tx:
        return [name for name in (f"c{i}" for i in range(10)) if completions.get(tx, name) is not None]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config.model_validate({"salt": "s", "home": str(tmp_path / "home"), "retention": {"completions_days": 30}})


def talk(store: Store) -> None:
    put(
        store,
        turn("c0", TEXT, "Lyon."),  # before it
        turn("c1"),
        turn("c2", TEXT, "Bordeaux."),
        turn("c3", [{"type": "text", "text": f"{TEXT} "}], "Nantes."),
        turn("c4", f"{TEXT} And more.", "Lille."),
        turn("c5", TEXT, "Nice.", user="bob"),
        turn("c6", TEXT, "Brest.", principal="app"),
        turn("c7", "Bordeaux.", "Metz."),
    )
    with store.write() as tx:
        for number, user in enumerate(("ann", "bob")):
            feedback.record(tx, thumb(f"f{number}", "c2", user))


def test_the_turns_that_quote_an_answer_go_with_it_and_are_told(store: Store, config: Config) -> None:
    talk(store)
    with store.read() as tx:
        assert reach_of(tx, config, ONE).told().later == ("c2", "c3")
    done = erase(store, config, ONE)
    assert (done.later, done.rows) == (("c2", "c3"), ErasedRows(3, 0, 2))
    assert left(store) == ["c0", "c4", "c5", "c6", "c7"]


def test_nobodys_are_those_of_the_same_conversation(store: Store, config: Config) -> None:
    chat, other = ExternalRef("web", "chat", "m1"), ExternalRef("web", "other", "m1")
    put(store, turn("c1", user=None, external=chat), turn("c2", TEXT, user=None, external=replace(chat, message="m2")))
    put(
        store, turn("c3", TEXT, user=None, external=other), turn("c4", TEXT, user=None), turn("c5", TEXT, external=chat)
    )
    assert erase(store, config, ONE).later == ("c2",)
    put(store, turn("c6", user=None), turn("c7", TEXT, user=None))
    assert erase(store, config, Subject("completion", "c6")).later == ()
    assert left(store) == ["c3", "c4", "c5", "c7"]


@pytest.mark.parametrize("text", ["", " \n"])
def test_nothing_quotes_an_answer_without_words(store: Store, config: Config, text: str) -> None:
    put(store, turn("c1", text=text), turn("c2", text), turn("c3", ""))
    assert erase(store, config, ONE).later == () and left(store) == ["c2", "c3"]


def test_they_are_found_in_archives_and_again_where_an_erasure_was_killed(
    store: Store, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk(store)
    manifest, uri = seal(tmp_path, {"train": [("c3", "ann")]}, 1)
    with store.write() as tx:
        snapshots.insert(tx, manifest, uri)
        adapters.insert(tx, adapter(1, manifest.id, None))
    keep(store, config, NOW)
    act, calls = users.erase_some, []

    def dies(*arguments: Any) -> ErasedRows:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return act(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(users, "erase_some", dies)
        erase(store, config, ONE)
    again = erase(store, config, ONE)
    assert again.later == ("c3",) and [held.rows for held in again.snapshots] == [{"train": 1}]
    assert left(store) == ["c0", "c4", "c5", "c6", "c7"]
    assert [one.adapter for one in erase(store, config, ONE).adapters] == ["policy@v1-aaaaaa"]


def test_only_what_an_assistant_said_is_a_quote() -> None:
    assert quotes([{"role": "assistant", "content": "Yes."}], "Yes.\n")
    assert not quotes([{"role": "user", "content": "Yes."}, {"role": "assistant", "content": None}], "Yes.")
