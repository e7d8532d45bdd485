"""Erased text is in no file of the database, also while others have it open."""

from __future__ import annotations

import random
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from kto_ray.store import Store, completions, feedback, open_store, scrub
from kto_ray.store.scrub import POSTGRES_REMAINS
from tests.support import rows
from tests.support.provenance import completion, thumb

USERS = 25


def fill(store: Store, number: int) -> None:
    """In an order and of sizes that have SQLite split and merge pages."""
    draw = random.Random(1)
    for begin in range(0, number, 50):
        with store.write() as tx:
            for i in range(begin, begin + 50):
                name, user = uuid.UUID(int=draw.getrandbits(128)).hex, f"user-{i % USERS}-NAME{i % USERS}X"
                said = [f"{mark}{i % USERS}X grows " * draw.choice([1, 5, 60, 400]) for mark in ("ASK", "SAY", "MEAN")]
                asked = ({"role": "user", "content": said[0]},)
                completions.insert(tx, replace(completion(name, user), messages=asked, text=said[1]))
                meant, tags = said[2][:4000], {"tag": f"TAG{i % USERS}X"}
                feedback.record(tx, replace(thumb(f"f-{name}", name, user), comment=meant, tags=tags))


def erase(store: Store, user: str) -> None:
    with store.write() as tx:
        rows.erase(tx, user)


def test_erased_text_is_in_no_file_of_sqlite_while_the_store_is_open(tmp_path: Path) -> None:
    store, other = (open_store(f"sqlite:///{tmp_path}/kto.db") for _ in range(2))
    fill(store, 1500)
    with other.read() as tx:  # its connection stays open from here on
        assert completions.get(tx, "none") is None
    gone = range(0, USERS, 2)
    for number in gone:
        erase(store, f"user-{number}-NAME{number}X")
    assert scrub.scrub(store) == ()
    kept = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    for mark in ("NAME", "ASK", "SAY", "MEAN", "TAG"):
        assert f"{mark}5X".encode() in kept
        assert [n for n in gone if f"{mark}{n}X".encode() in kept] == [], mark
    store.close()
    other.close()


def test_a_reader_that_stands_in_the_way_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrub, "PATIENCE_S", 0.0)
    store, other = (open_store(f"sqlite:///{tmp_path}/kto.db") for _ in range(2))
    fill(store, 50)
    impatient = sa.event.listens_for(store.engine, "checkout")
    impatient(lambda connection, *_: connection.execute("PRAGMA busy_timeout=100"))
    with other.read() as tx:
        assert completions.get(tx, "none") is None
        erase(store, "user-3-NAME3X")
        [said] = scrub.scrub(store)
    assert "may still hold the text" in said and "reader" in said
    assert scrub.scrub(store) == ()
    store.close()
    other.close()


def test_postgresql_says_what_remains(store: Store) -> None:
    fill(store, 50)
    erase(store, "user-3-NAME3X")
    assert scrub.scrub(store) == (() if store.sqlite else (POSTGRES_REMAINS,))
