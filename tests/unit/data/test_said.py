"""Held-out rows as texts: messages from the store, answers from the rows' own tokens."""

from __future__ import annotations

from typing import Any

from kto_ray.config import Config
from kto_ray.data.said import thumbed
from kto_ray.data.tokens import load_tokenizer
from kto_ray.model import resolve_model
from kto_ray.records.evaluation import HeldOut, Thumbed, Tokens
from kto_ray.store import Store, completions
from tests.support.rows import completion

CONFIG = Config()
MODEL = resolve_model(CONFIG.model)
PARTS = ({"role": "user", "content": [{"type": "text", "text": "Hi"}]},)


def row(name: str, text: str, desirable: bool = True) -> HeldOut:
    said: Any = load_tokenizer(MODEL, None)(f"{text}<|im_end|>")["input_ids"]
    return HeldOut(f"e-{name}", f"u-{name}", desirable, Tokens((1, 2), tuple(said)), name)


def test_a_row_is_read_as_it_was_asked_and_as_it_is_judged(store: Store) -> None:
    with store.write() as tx:
        completions.insert(tx, completion("c1", text="Hello."))
        completions.insert(tx, completion("c2", messages=PARTS))
        completions.insert(tx, completion("c3", tool_calls=({"id": "1"},)))
        completions.insert(tx, completion("c4", messages=()))
    rows = [row("c1", "Hello, Ann!", False), *(row(name, "x") for name in ("c2", "c3", "c4", "erased"))]
    with store.read() as tx:
        found = thumbed(tx, CONFIG, MODEL, rows, 10)
    hi = ({"role": "user", "content": "Hi"},)
    assert found == [Thumbed("u-c1", hi, "Hello, Ann!", False)], "the better text of an edit, not what was served"


def test_a_choice_is_fixed(store: Store) -> None:
    rows = [row(f"c{i}", str(i)) for i in range(20)]
    with store.write() as tx:
        for each in rows:
            completions.insert(tx, completion(each.completion))
    with store.read() as tx:
        once, again = (thumbed(tx, CONFIG, MODEL, given, 5) for given in (rows, rows[::-1]))
    assert once == again and len({one.text for one in once}) == 5
    assert sorted(int(one.text) for one in once) != [0, 1, 2, 3, 4]
