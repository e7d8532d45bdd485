"""Importing and exporting TRL's unpaired preference format."""

from __future__ import annotations

import gzip
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest

from kto_ray.feedback.files import read_unpaired, write_unpaired
from kto_ray.feedback.labels import examples
from kto_ray.records.completions import Arm
from kto_ray.records.feedback import Feedback, FeedbackKind
from tests.support.rows import completion, thumb

GOOD: dict[str, Any] = {
    "prompt": [{"role": "user", "content": "Hi"}],
    "completion": [{"role": "assistant", "content": "Hello."}],
    "label": True,
}


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_conversations_and_plain_strings(tmp_path: Path) -> None:
    plain = {"prompt": "What is 2+2?", "completion": "4", "label": False, "user": "ann", "created_at": 5}
    (one, up), (two, down) = read_unpaired(lines(tmp_path / "f.jsonl", GOOD, "", plain))
    assert one.text == "Hello." and up.value is True and one.arm is Arm.IMPORT and str(one.user).startswith("import-")
    assert two.messages == ({"role": "user", "content": "What is 2+2?"},)
    assert (down.value, down.user, two.created_at) == (False, "ann", 5.0)


def test_gzip_and_stable_ids(tmp_path: Path) -> None:
    path = lines(tmp_path / "f.jsonl", GOOD)
    zipped = tmp_path / "f.bin"
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    assert read_unpaired(path)[0][0].id == read_unpaired(zipped)[0][0].id


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({**GOOD, "label": 1}, "label must be true or false, got 1"),
        ({**GOOD, "label": "true"}, "label must be true or false, got 'true'"),
        ({**GOOD, "created_at": 1764000000000}, "year 57868; as milliseconds it is past: divide by 1000"),
        ({**GOOD, "created_at": 1764000000000000}, "as microseconds it is past"),
        ({**GOOD, "created_at": 1764000000000000000}, "as nanoseconds it is past"),
        ({**GOOD, "created_at": 4e9}, "year 2096"),
        ({**GOOD, "created_at": -1}, "seconds since the epoch, got -1"),
        ({**GOOD, "created_at": True}, "seconds since the epoch, got True"),
        ({**GOOD, "created_at": None}, "seconds since the epoch, got None"),
        (json.dumps({**GOOD, "created_at": 10**400}), "seconds since the epoch"),
        (json.dumps({**GOOD, "created_at": math.nan}), "NaN is no number"),
        (json.dumps({**GOOD, "created_at": math.inf}), "Infinity is no number"),
        (json.dumps({**GOOD, "prompt": [{"role": "user", "content": "Hi", "score": math.nan}]}), "NaN is no number"),
        ("[" * 100_000, "not JSON"),
        ({**GOOD, "prompt": "half \ud83d"}, "half a character"),
        ({**GOOD, "completion": "a\0b"}, "NUL"),
        ({**GOOD, "prompt": [{"role": "customer", "content": "Hi"}]}, "prompt[0].role must be one of system"),
        ({**GOOD, "prompt": [{"role": "user", "content": ["Hi"]}]}, "prompt[0].content must be"),
        ({**GOOD, "prompt": [{"role": "user", "content": [{"type": "text", "text": None}]}]}, "prompt[0].content"),
        ({**GOOD, "prompt": ["Hi"]}, "prompt[0] must be a message"),
        ({**GOOD, "completion": [{"role": "tool", "content": "{}"}]}, "completion must end with words or tool"),
        ({**GOOD, "completion": [{"role": "assistant", "content": " "}]}, "completion must end with words or tool"),
        ({**GOOD, "user": ["ann"]}, "user must be a string"),
        ({**GOOD, "user": "u" * 256}, "user has 256 characters"),
        ("{broken", "not JSON"),
        ([1], "must be an object"),
        ({**GOOD, "label": "yes"}, "label must be true or false, got 'yes'"),
        ({"prompt": "a", "completion": "b"}, "label"),
        ({**GOOD, "prompt": []}, "prompt must be"),
        ({**GOOD, "completion": ""}, "completion must be"),
        ({**GOOD, "completion": [{"role": "assistant"}]}, "completion must end with"),
        ({**GOOD, "completion": [{"role": "assistant", "tool_calls": [{"id": "c1"}]}]}, "tool_calls must be a list of"),
        ({**GOOD, "created_at": "today"}, "created_at"),
    ],
)
def test_a_broken_line_is_named_and_nothing_is_read(tmp_path: Path, row: object, told: str) -> None:
    with pytest.raises(ValueError, match="line 2") as error:
        read_unpaired(lines(tmp_path / "f.jsonl", GOOD, row, GOOD))
    assert told in str(error.value)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_byte_order_mark_and_any_end_of_line(tmp_path: Path, end: str, zipped: bool) -> None:
    plain = {"prompt": "What is 2+2?", "completion": "4", "label": False}
    text = "".join(f"{mark}{json.dumps(row)}{end}" for mark, row in (("\ufeff", GOOD), ("\ufeff", plain)))
    data = (text + "\ufeff" + end).encode()
    (tmp_path / "f.jsonl").write_bytes(gzip.compress(data) if zipped else data)
    assert [made.text for made, _ in read_unpaired(tmp_path / "f.jsonl")] == ["Hello.", "4"]


def test_the_answer_is_the_last_turn_of_a_completion_and_the_rest_is_its_prompt(tmp_path: Path) -> None:
    turns = [
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c1"}]},
        {"role": "tool", "content": '{"x":1}'},
        {"role": "assistant", "content": [{"type": "text", "text": "Left"}, {"type": "text", "text": "or right."}]},
    ]
    ((completion, _),) = read_unpaired(lines(tmp_path / "f.jsonl", {**GOOD, "completion": turns}))
    assert completion.text == "Left\nor right."
    assert completion.messages == (*GOOD["prompt"], *turns[:2])


def test_of_two_judgements_of_one_user_the_later_stands(tmp_path: Path) -> None:
    def label(*rows: object) -> list[bool | None]:
        return [thumb.value for _, thumb in read_unpaired(lines(tmp_path / "f.jsonl", *rows))]

    up, down = {**GOOD, "user": "ann"}, {**GOOD, "user": "ann", "label": False}
    assert label(up, down) == [False] and label(down, up) == [True]
    assert label(GOOD, {**GOOD, "label": False}) == [False]  # who is not named is one
    assert label({**up, "created_at": 2}, {**down, "created_at": 1}) == [True]
    assert label(up, up, {**down, "user": "bob"}) == [True, False]


def test_who_is_not_named_is_one_user_a_prompt(tmp_path: Path) -> None:
    rows = [{"prompt": p, "completion": c, "label": True} for p, c in (("a", "1"), ("a", "2"), ("b", "1"))]
    users = [made.user for made, _ in read_unpaired(lines(tmp_path / "f.jsonl", *rows))]
    assert users[0] == users[1] != users[2]


def test_files_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        read_unpaired(tmp_path / "none")
    with pytest.raises(ValueError, match="no rows"):
        read_unpaired(lines(tmp_path / "empty"))
    (tmp_path / "cut.gz").write_bytes(gzip.compress(json.dumps(GOOD).encode())[:-12])
    with pytest.raises(ValueError, match="cannot be read"):
        read_unpaired(tmp_path / "cut.gz")


HISTORY = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": [{"type": "text", "text": "Look:"}, {"type": "image_url", "image_url": {"url": "x"}}]},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function"}], "refusal": None},
    {"role": "tool", "tool_call_id": "c1", "content": "high at 4"},
    {"role": "assistant", "content": "At 4.", "tool_calls": None},
    {"role": "developer", "content": "Shorter."},
]


def test_an_answer_of_tool_calls_comes_back(tmp_path: Path) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "tide", "arguments": "{}"}}
    called = completion(text="", tool_calls=(call,))
    file = io.StringIO()
    write_unpaired(examples(called, [thumb("f1")]), file)
    (tmp_path / "g.jsonl").write_text(file.getvalue(), encoding="utf-8")
    ((made, judged),) = read_unpaired(tmp_path / "g.jsonl")
    assert (made.text, made.tool_calls, made.finish_reason, judged.value) == ("", (call,), "tool_calls", True)


@pytest.mark.parametrize("prompt", [GOOD["prompt"], HISTORY])
@pytest.mark.parametrize("user", ["ann", None])
def test_what_was_exported_is_the_same_rows_again(tmp_path: Path, prompt: Any, user: str | None) -> None:
    """Also an edit: its two rows are of one user, prompt and time, and differ in their answers."""
    made = completion(messages=tuple(prompt), text="Hello.", user=user)
    edit = Feedback("f1", 5.0, FeedbackKind.EDIT, "c1", user, text="  Better.\r\n\u2028")
    before = examples(made, [edit])
    file = io.StringIO()
    write_unpaired(before, file)
    (tmp_path / "g.jsonl").write_text(file.getvalue(), encoding="utf-8")
    after = [one for done, thumb in read_unpaired(tmp_path / "g.jsonl") for one in examples(done, [thumb])]

    def facts(examples: Any) -> Any:
        return [(e.messages, e.answer, e.desirable, e.user, e.created_at) for e in examples]

    assert facts(after) == facts(before) and len(after) == 2


def test_the_human_data_is_read_whole(shared: Path) -> None:
    rows = read_unpaired(shared / "data" / "human_thumbs.jsonl.gz")
    assert len(rows) == 3524 and sum(bool(thumb.value) for _, thumb in rows) == 1762
    assert len({completion.user for completion, _ in rows}) == 1760
