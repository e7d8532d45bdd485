"""What the passes of a freeze do to one block; the passes themselves need Ray (tests/integration/test_snapshot)."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kto_ray.config import Config
from kto_ray.config.serving import ModelSection
from kto_ray.data import encoded, passes
from kto_ray.data.tokens import load_tokenizer
from kto_ray.feedback.labels import examples
from kto_ray.model import resolve_model
from kto_ray.records.feedback import FeedbackKind
from tests.support.rows import completion, thumb


def test_rows_carry_their_text_and_the_integers_that_decide() -> None:
    found = examples(completion(), [thumb("f1")])
    table = passes._raw(found, Config())
    (row,) = table.select(["completion_id", "answer", "label", "created_at"]).to_pylist()
    assert row == {"completion_id": "c1", "answer": "Hello.", "label": True, "created_at": 200.0}
    assert "ann" not in json.dumps(table.select(["user_hash", "messages"]).to_pylist()), "a user travels hashed"


def test_a_row_that_cannot_be_trained_on_is_kept_with_its_fault() -> None:
    path = resolve_model(ModelSection())
    long = completion("c2", messages=({"role": "user", "content": "why " * 100},))
    image = completion("c3", messages=({"role": "user", "content": [{"type": "image_url"}]},))
    table = passes._raw([e for c in (completion(), long, image) for e in examples(c, [thumb("f1", c.id)])], Config())
    rows = encoded.block(table, lambda: load_tokenizer(path, None), 64).to_pylist()
    assert [encoded.FAULTS[row["fault"]] for row in rows] == ["", "too_long", "unrenderable"]
    assert load_tokenizer(path, None).decode(rows[0]["completion_ids"]) == "Hello.<|im_end|>"
    assert rows[1]["prompt_ids"] == rows[2]["prompt_ids"] == []


def test_rows_of_the_engine_need_no_tokenizer() -> None:
    served = dict(prompt_ids=pack(5, 6, 7), answer_ids=pack(8, 2), base=Config().model.mark)
    found = [e for i in range(3) for e in examples(completion(f"c{i}", **served), [thumb("f", f"c{i}")])]
    table = passes._raw(found, Config()).slice(1)
    rows = encoded.block(table, lambda: pytest.fail("no text is looked at"), 64)
    assert rows["prompt_ids"].to_pylist() == [[5, 6, 7]] * 2 and rows["completion_ids"].to_pylist() == [[8, 2]] * 2
    assert rows["completion_id"].to_pylist() == ["c1", "c2"]


def test_ids_that_cannot_be_used_as_they_are() -> None:
    path, mark = resolve_model(ModelSection()), Config().model.mark
    other, cut, full = (
        dict(prompt_ids=pack(*range(9)), answer_ids=pack(*range(20)), base="another model"),
        dict(prompt_ids=pack(*range(9)), answer_ids=pack(*range(20)), base=mark),
        dict(prompt_ids=pack(*range(16)), answer_ids=pack(8), base=mark),
    )
    made = [completion(f"c{i}", **ids) for i, ids in enumerate((other, cut, full))]
    table = passes._raw([e for c in made for e in examples(c, [thumb("f", c.id)])], Config())
    rows = encoded.block(table, lambda: load_tokenizer(path, None), 16).to_pylist()
    assert rows[0]["prompt_ids"] != list(range(9)) and rows[0]["fault"] == 2, "rendered by this model's template"
    assert rows[1]["completion_ids"] == list(range(16))
    assert encoded.FAULTS[rows[2]["fault"]] == "too_long"


def test_calls_are_taken_from_the_engines_ids_or_not_at_all() -> None:
    path, mark = resolve_model(ModelSection()), Config().model.mark
    call = {"type": "function", "function": {"name": "tide", "arguments": "{}"}}
    ids = dict(prompt_ids=pack(5, 6), answer_ids=pack(7, 2))
    made = [
        completion("c0", **ids, base=mark),
        completion("c1", **ids, base="another model"),
        completion("c2"),
        completion("c3", **ids, base=mark, reasoning="Hm."),
    ]
    made = [replace(answer, text="", tool_calls=(call,)) for answer in made]
    found = [e for c in made for e in examples(c, [thumb("f", c.id)])]
    config = Config.model_validate({"data": {"reasoning": "context"}})
    rows = encoded.block(passes._raw(found, config), lambda: load_tokenizer(path, None), 64).to_pylist()
    faults = {row["completion_id"]: encoded.FAULTS[row["fault"]] for row in rows}
    assert faults == {"c0": "", "c1": "unrenderable", "c2": "unrenderable", "c3": "unrenderable"}
    assert [row["completion_ids"] for row in rows if row["completion_id"] == "c0"] == [[7, 2]]


@pytest.mark.parametrize(
    "params", [{"tools": [{"type": "function"}]}, {"chat_template_kwargs": {"a": 1}}, {"reasoning_effort": "low"}]
)
def test_a_prompt_of_more_than_its_messages_is_taken_from_the_engines_ids_or_not_at_all(params: dict[str, Any]) -> None:
    path, mark = resolve_model(ModelSection()), Config().model.mark
    ids = dict(prompt_ids=pack(5, 6), answer_ids=pack(7, 2))
    made = [
        completion("c0", **ids, base=mark, params=params),
        completion("c1", **ids, base="another model", params=params),
        completion("c2", params=params),
        completion("c3", **ids, base="another model", params={"temperature": 0.3}),
    ]
    edit: dict[str, Any] = {"kind": FeedbackKind.EDIT, "value": None, "text": "Better."}
    found = [e for c in made for e in examples(c, [thumb("f", c.id, **edit)])]
    rows = encoded.block(passes._raw(found, Config()), lambda: load_tokenizer(path, None), 64).to_pylist()
    faults = {(row["completion_id"], row["label"]): encoded.FAULTS[row["fault"]] for row in rows}
    lost = {(name, label): "unrenderable" for name in ("c1", "c2") for label in (True, False)}
    assert faults == {**lost, **{(name, label): "" for name in ("c0", "c3") for label in (True, False)}}
    assert [row["prompt_ids"] for row in rows if row["completion_id"] == "c0"] == [[5, 6]] * 2, "edited or not"


def pack(*ids: int) -> bytes:
    return np.array(ids, "<i4").tobytes()


def test_ids_are_found_among_sorted_ones() -> None:
    ids = np.array([2, 4, 8], np.uint64)
    assert passes._find(ids, np.array([8, 3, 2, 9], np.uint64)).tolist() == [2, -1, 0, -1]
    assert passes._find(ids[:0], ids).tolist() == [-1, -1, -1]
    assert passes._ends(0, 7, 3) == [3, 6, 7]
