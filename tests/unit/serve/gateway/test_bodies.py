"""Request bodies: what is taken, and how a bad one is told."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kto_ray.records.completions import Arm, ExternalRef
from kto_ray.records.feedback import FeedbackKind
from kto_ray.rollout.assignment import Route
from kto_ray.serve.gateway.bodies import (
    parse_chat,
    parse_feedback,
    parse_json,
)
from kto_ray.serve.gateway.capture import Capture, as_event
from kto_ray.serve.gateway.errors import ApiError

HI = [{"role": "user", "content": "Hi"}]
EXTERNAL = {"conversation": "k", "message": "m"}


def chat(**body: Any) -> dict[str, Any]:
    return {"messages": HI, **body}


def test_who_and_where() -> None:
    headers = {"x-kto-user-id": "h", "x-kto-task": "title", "x-kto-chat-id": "c", "x-kto-message-id": "m"}
    ask = parse_chat(chat(model="policy@base", stream=True, temperature=0.5), headers)
    assert (ask.user, ask.task, ask.external) == ("h", "title", ExternalRef("default", "c", "m"))
    assert ask.stream and ask.model == "policy@base" and ask.params == {"temperature": 0.5}
    assert parse_chat(chat(user="u"), headers).user == "u"
    assert parse_chat(chat(user="u", safety_identifier="s"), headers).user == "s"
    anonymous = parse_chat(chat(), {})
    assert anonymous.user is None and anonymous.external is None and anonymous.model == "policy"


@pytest.mark.parametrize(
    ("body", "param", "told"),
    [
        ({}, "messages", "non-empty list"),
        ({"messages": "Hi"}, "messages", "'Hi'"),
        ({"messages": ["Hi"]}, "messages", "list of objects"),
        ({"messages": [{"content": "Hi"}]}, "messages", "messages[0].role"),
        (chat(n=2), "n", "n must be 1"),
        (chat(model=7), "model", "string"),
        (chat(stream="yes"), "stream", "true or false"),
        (chat(user={"a": 1}), "user", "string"),
    ],
)
def test_bad_chat_names_the_field(body: dict[str, Any], param: str, told: str) -> None:
    with pytest.raises(ApiError) as error:
        parse_chat(body, {})
    assert error.value.status == 400 and error.value.param == param and told in str(error.value)
    assert set(error.value.body["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("raw", [b"{", b"[1]", b"\xff\xfe", b'"x"'])
def test_what_is_no_json_object_is_refused(raw: bytes) -> None:
    with pytest.raises(ApiError, match="JSON") as error:
        parse_json(raw)
    assert error.value.status == 400


def test_a_huge_body_is_refused() -> None:
    with pytest.raises(ApiError) as error:
        parse_json(b"x" * (5 * 1024 * 1024))
    assert error.value.status == 413


def test_feedback_of_each_kind() -> None:
    event = parse_feedback({"completion_id": "c", "kind": "thumb", "value": False, "tags": {"a": 1}}, "key")
    assert (event.kind, event.value, event.idempotency_key, event.tags) == (FeedbackKind.THUMB, False, "key", {"a": 1})
    external = {"conversation": "k", "message": "m"}
    edit = parse_feedback({"external": external, "kind": "edit", "text": "Better."}, None)
    assert (edit.text, edit.external) == ("Better.", ExternalRef("default", "k", "m"))
    comment = parse_feedback({"completion_id": "c", "kind": "comment", "comment": "hm"}, None)
    assert comment.comment == "hm"


def test_the_body_hash_is_of_the_meaning() -> None:
    one = parse_feedback({"completion_id": "c", "kind": "thumb", "value": True}, None)
    two = parse_feedback({"value": True, "kind": "thumb", "completion_id": "c", "comment": None}, None)
    other = parse_feedback({"completion_id": "c", "kind": "thumb", "value": False}, None)
    assert one.body_hash == two.body_hash != other.body_hash and one.id != two.id


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"kind": "thumb", "value": True}, "completion_id or external"),
        ({"completion_id": "c", "external": EXTERNAL, "kind": "thumb", "value": True}, "either"),
        ({"completion_id": "c", "kind": "thumb"}, "needs value"),
        ({"completion_id": "c", "kind": "thumb", "value": 1}, "value"),
        ({"completion_id": "c", "kind": "stars", "value": True}, "'stars'"),
        ({"completion_id": "c", "kind": "edit", "text": "  "}, "needs text"),
        ({"completion_id": "c", "kind": "comment"}, "needs comment"),
        ({"completion_id": "c", "kind": "thumb", "value": True, "valeu": 1}, "valeu"),
        ({"completion_id": "", "kind": "thumb", "value": True}, "completion_id"),
    ],
)
def test_bad_feedback_says_what_is_missing(body: dict[str, Any], told: str) -> None:
    with pytest.raises(ApiError) as error:
        parse_feedback(body, None)
    assert error.value.status == 400 and told in str(error.value)


def test_a_long_idempotency_key_is_refused() -> None:
    with pytest.raises(ApiError, match="255"):
        parse_feedback({"completion_id": "c", "kind": "thumb", "value": True}, "k" * 256)


def test_a_stream_is_captured_as_the_client_sees_it() -> None:
    route = Route("policy@v1-abc", Arm.CHALLENGER, "r1")
    capture = Capture("chatcmpl-1", parse_chat(chat(user="u", model="policy"), {}), route)
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


def test_events_are_one_json_line() -> None:
    event = as_event({"text": "line\nbreak, ünïcode"})
    assert event.startswith("data: ") and event.endswith("\n\n") and event.count("\n") == 2
    assert json.loads(event[6:])["text"] == "line\nbreak, ünïcode"
