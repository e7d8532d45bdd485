"""What the passes of a freeze do to one block; the passes themselves need Ray (tests/integration/test_snapshot)."""

from __future__ import annotations

import json

import numpy as np

from kto_ray.config import Config
from kto_ray.config.serving import ModelSection
from kto_ray.data import passes
from kto_ray.data.tokens import load_tokenizer
from kto_ray.feedback.labels import examples
from kto_ray.model import resolve_model
from tests.support.rows import completion, thumb


def test_rows_carry_their_text_and_the_integers_that_decide() -> None:
    found = examples(completion(), [thumb("f1")])
    table = passes._raw(found, Config())
    (row,) = table.select(["completion_id", "answer", "label", "created_at"]).to_pylist()
    assert row == {"completion_id": "c1", "answer": "Hello.", "label": True, "created_at": 200.0}
    assert "ann" not in json.dumps(table.select(["user_hash", "messages"]).to_pylist()), "a user travels hashed"


def test_a_row_that_cannot_be_trained_on_keeps_its_place_and_its_fault() -> None:
    tokenizer = load_tokenizer(resolve_model(ModelSection()), None)
    long = completion("c2", messages=({"role": "user", "content": "why " * 100},))
    table = passes._raw([*examples(completion(), [thumb("f1")]), *examples(long, [thumb("f2", "c2")])], Config())
    rows = passes._tokenized(table, tokenizer, 64).to_pylist()
    assert [passes.FAULTS[row["fault"]] for row in rows] == ["", "too_long"]
    assert tokenizer.decode(rows[0]["completion_ids"]).startswith("Hello.") and rows[1]["prompt_ids"] == []


def test_ids_are_found_among_sorted_ones() -> None:
    ids = np.array([2, 4, 8], np.uint64)
    assert passes._find(ids, np.array([8, 3, 2, 9], np.uint64)).tolist() == [2, -1, 0, -1]
    assert passes._find(ids[:0], ids).tolist() == [-1, -1, -1]
    assert passes._ends(0, 7, 3) == [3, 6, 7]
