"""What is wrong with an answer by its words alone."""

from __future__ import annotations

from typing import Any

import pytest

from kto_ray.feedback import faults
from tests.support.rows import completion

TOOLS = [{"type": "function", "function": {"name": "tide"}}]


def call(name: str, arguments: str | None) -> dict[str, Any]:
    return {"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}}


@pytest.mark.parametrize(
    ("calls", "wrong"),
    [
        ((), False),
        ((call("tide", '{"port": "Hull"}'),), False),
        ((call("tide", ""), call("tide", None)), False),
        ((call("tide", "{}"), call("wind", "{}")), True),
        ((call("tide", '{"port": "Hu'),), True),
        ((call("tide", "[1]"),), True),
        ((call("tide", "Hull"),), True),
        ((call("tide", '{"a":' + "[" * 100_000),), True),
        ((call("tide", '{"a":' + "[" * 100_000 + "]" * 100_000 + "}"),), True),
        (({"id": "c", "function": {"name": "tide", "arguments": {"port": "Hull"}}},), True),
        (({"id": "c"},), True),
    ],
)
def test_a_call_that_no_tool_can_take(calls: tuple[dict[str, Any], ...], wrong: bool) -> None:
    one = completion(tool_calls=calls, params={"tools": TOOLS})
    assert ("tool_error" in faults.of(one)) is wrong
    assert ("tool_error" in faults.of(completion(tool_calls=calls))) is bool(calls), "where none was offered"
    assert faults.of(completion(tool_calls=calls, status="aborted")) == [], "it was not done"


def test_an_answer_that_asks_back() -> None:
    assert faults.of(completion(text="It is blue. Shall I say why?\n")) == ["asked_back"]
    assert faults.of(completion(text="Why? Because it is.")) == faults.of(completion(text="")) == []
    assert faults.of(completion(text="How so?" + " " * 5000)) == ["asked_back"]
