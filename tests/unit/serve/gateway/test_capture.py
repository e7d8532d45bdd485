"""What is captured of an answer."""

from __future__ import annotations

import json
from typing import Any

from kto_ray.config import Config
from kto_ray.records.completions import Arm
from kto_ray.rollout.assignment import Route
from kto_ray.serve.gateway.bodies import parse_chat
from kto_ray.serve.gateway.capture import Capture, as_event


def test_a_stream_is_captured_as_the_client_sees_it() -> None:
    route = Route("policy@v1-abc", Arm.CHALLENGER, "r1")
    body = {"messages": [{"role": "user", "content": "Hi"}], "user": "u", "model": "policy"}
    capture = Capture("chatcmpl-1", parse_chat(body, {}, Config()), route)
    chunks: list[dict[str, Any]] = [
        {"id": "x", "model": "y", "choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]},
        {"id": "x", "model": "y", "choices": [{"delta": {"content": "Hel"}, "finish_reason": None}]},
        {"id": "x", "model": "y", "choices": [{"delta": {"content": "lo"}, "finish_reason": "stop"}]},
        {"id": "x", "model": "y", "choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2}},
    ]
    signed = [capture.add_chunk(chunk) for chunk in chunks]
    assert {(c["id"], c["model"], c["system_fingerprint"]) for c in signed} == {("chatcmpl-1", "policy", route.adapter)}
    row = capture.completion("complete")
    assert (row.text, row.finish_reason, row.prompt_tokens, row.completion_tokens) == ("Hello", "stop", 9, 2)
    assert (row.adapter, row.arm, row.rollout, row.user) == (route.adapter, Arm.CHALLENGER, "r1", "u")
    assert row.first_token_s is not None


def test_the_reason_of_an_end_is_captured_whole_or_streamed() -> None:
    """A stop string is no end of turn that the policy chose."""
    body = {"messages": [{"role": "user", "content": "Hi"}], "stop": [","]}
    end: dict[str, Any] = {"finish_reason": "stop", "stop_reason": ",", "token_ids": [5]}
    whole = {"choices": [{"message": {"content": "Red"}, **end}], "prompt_token_ids": [1, 2], "usage": None}
    streamed = {"choices": [{"delta": {"content": "Red"}, **end}], "prompt_token_ids": [1, 2]}
    for told, add in ((whole, Capture.add_response), (streamed, Capture.add_chunk)):
        capture = Capture("c", parse_chat(body, {}, Config()), Route("policy@base", Arm.CHAMPION, None))
        signed = add(capture, told)
        row = capture.completion("complete")
        assert (row.text, row.stop_reason, row.answer_ids) == ("Red", ",", b"\5\0\0\0")
        assert "prompt_token_ids" not in signed and "token_ids" not in signed["choices"][0]


def test_events_are_one_json_line() -> None:
    event = as_event({"text": "line\nbreak, ünïcode"})
    assert event.startswith("data: ") and event.endswith("\n\n") and event.count("\n") == 2
    assert json.loads(event[6:])["text"] == "line\nbreak, ünïcode"
