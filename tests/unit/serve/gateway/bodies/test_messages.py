"""Messages: what is taken, the one form in which they go on, and how a bad one is told by its place."""

from __future__ import annotations

from typing import Any

import pytest

from kto_ray.config import Config
from kto_ray.serve.gateway.bodies import limits, parse_chat
from kto_ray.serve.gateway.errors import ApiError

USER = {"role": "user", "content": "And a third?"}
CALL = {"id": "c1", "type": "function", "function": {"name": "tide", "arguments": '{"port": "Hull"}'}}


def normal(*messages: Any) -> list[Any]:
    ask = parse_chat({"messages": list(messages)}, {}, Config())
    assert ask.upstream("r")["messages"] == list(ask.messages), "what is logged is what is sent"
    return list(ask.messages)


def test_nulls_that_sdks_dump_are_neither_sent_nor_logged() -> None:
    dumped: dict[str, Any] = {
        "role": "assistant",
        "content": "Red and green.",
        "refusal": None,
        "tool_calls": None,
        "audio": None,
        "function_call": None,
        "annotations": [],
        "name": None,
        "tool_call_id": None,
    }
    assert normal(dumped, USER) == [{"role": "assistant", "content": "Red and green."}, USER]
    assert normal({**USER, "name": None}) == [USER]
    assert normal({"role": "assistant", "content": "Hi", "tool_calls": []}, USER)[0] == {
        "role": "assistant",
        "content": "Hi",
    }
    assert normal({"role": "assistant", "content": None}, USER)[0] == {"role": "assistant"}


def test_calls_of_tools_and_their_answers_pass() -> None:
    called = {"role": "assistant", "content": None, "tool_calls": [{**CALL, "index": 0}]}
    told = {"role": "tool", "tool_call_id": "c1", "content": "high at 4", "name": "tide"}
    assert normal(USER, called, told) == [USER, {"role": "assistant", "tool_calls": [CALL]}, told]
    untyped = {key: value for key, value in CALL.items() if key != "type"}
    assert normal({"role": "assistant", "tool_calls": [untyped]})[0]["tool_calls"] == [CALL]


def test_notes_that_sdks_keep_with_an_answer_are_neither_sent_nor_logged() -> None:
    notes = {"parsed": {"port": "Hull"}, "reasoning_details": [{"type": "reasoning.text"}], "id": "m1", "index": 0}
    function = {"name": "tide", "arguments": '{"port": "Hull"}', "parsed_arguments": {"port": "Hull"}}
    call = {**CALL, "function": function, "index": 0, "extra_content": {"a": 1}, "provider_specific_fields": {}}
    parts = [{"type": "text", "text": "Hi.", "id": "p", "index": 0, "annotations": [], "parsed": {}}]
    answered = {"role": "assistant", "content": parts, "tool_calls": [call], **notes}
    told = {"role": "tool", "tool_call_id": "c1", "content": "high at 4", "status": "completed"}
    assert normal(USER, answered, told) == [
        USER,
        {"role": "assistant", "content": [{"type": "text", "text": "Hi."}], "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "high at 4"},
    ]


def test_a_refusal_is_what_was_said_where_nothing_else_was() -> None:
    refused = {"role": "assistant", "content": None, "refusal": "I cannot."}
    part = {"type": "refusal", "refusal": "I cannot."}
    assert normal(refused, USER)[0] == {"role": "assistant", "content": "I cannot."}
    assert normal({**refused, "content": "Red."}, USER)[0] == {"role": "assistant", "content": "Red."}
    assert normal({"role": "assistant", "content": [part]}, USER)[0]["content"] == [
        {"type": "text", "text": "I cannot."}
    ]


def test_parts_names_and_roles_pass() -> None:
    parts = [{"type": "text", "text": "Read this."}, {"type": "text", "text": ""}]
    cached = [{**parts[0], "cache_control": {"type": "ephemeral"}}, parts[1]]
    told = [
        {"role": "developer", "content": "Answer in one short line.", "name": "ops"},
        {"role": "system", "content": cached},
        {"role": "user", "content": ""},
    ]
    assert normal(*told) == [told[0], {"role": "system", "content": parts}, told[2]]


def test_what_a_model_thought_goes_by_one_name() -> None:
    thought = {"role": "assistant", "content": "4", "reasoning_content": "2 + 2"}
    assert normal(thought, USER)[0] == {"role": "assistant", "content": "4", "reasoning": "2 + 2"}


TEXT = "messages[0].content"
ARGUMENTS = "messages[0].tool_calls[0].function.arguments"


def calling(arguments: Any) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": arguments}}]}


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ("Hi", "messages[0]"),
        (None, "messages[0]"),
        (["user", "Hi"], "messages[0]"),
        ({"content": "Hi"}, "messages[0].role"),
        ({"role": None, "content": "Hi"}, "messages[0].role"),
        ({"role": "customer", "content": "Hi"}, "messages[0].role"),
        ({"role": "function", "name": "f", "content": "Hi"}, "messages[0].role"),
        ({"role": ["user"], "content": "Hi"}, "messages[0].role"),
        ({"role": "User", "content": "Hi"}, "messages[0].role"),
        ({"role": "user"}, TEXT),
        ({"role": "user", "content": None}, TEXT),
        ({"role": "system", "content": None}, TEXT),
        ({"role": "tool", "content": None, "tool_call_id": "c"}, TEXT),
        ({"role": "user", "content": 7}, TEXT),
        ({"role": "user", "content": True}, TEXT),
        ({"role": "user", "content": {"type": "text", "text": "Hi"}}, TEXT),
        ({"role": "user", "content": []}, TEXT),
        ({"role": "user", "content": ["Read this line."]}, f"{TEXT}[0]"),
        ({"role": "user", "content": [{"type": "text", "text": "a"}, "b"]}, f"{TEXT}[1]"),
        ({"role": "user", "content": [None]}, f"{TEXT}[0]"),
        ({"role": "user", "content": [[]]}, f"{TEXT}[0]"),
        ({"role": "user", "content": [{"type": "text", "text": None}]}, f"{TEXT}[0]"),
        ({"role": "user", "content": [{"type": "text"}]}, f"{TEXT}[0]"),
        ({"role": "user", "content": [{"text": "Hi"}]}, f"{TEXT}[0]"),
        ({"role": "user", "content": [{"type": "text", "text": 7}]}, f"{TEXT}[0]"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}, f"{TEXT}[0]"),
        ({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, f"{TEXT}[0]"),
        ({"role": "user", "content": [{"type": "text", "text": "a", "image_url": "b"}]}, f"{TEXT}[0].image_url"),
        ({"role": "user", "content": "Hi", "name": 7}, "messages[0].name"),
        ({"role": "user", "content": "Hi", "name": ""}, "messages[0].name"),
        ({"role": "user", "content": "Hi", "name": "n" * 256}, "messages[0].name"),
        ({"role": "user", "content": "Hi", "date": "today"}, "messages[0].date"),
        ({"role": "assistant", "content": "Hi", "refusal": 7}, "messages[0].refusal"),
        ({"role": "user", "content": "Hi", "refusal": "No."}, "messages[0].refusal"),
        ({"role": "assistant", "content": "Hi", "prefix": True}, "messages[0].prefix"),
        ({"role": "user", "content": "Hi", "tool_calls": [CALL]}, "messages[0].tool_calls"),
        ({"role": "user", "content": "Hi", "tool_call_id": "c"}, "messages[0].tool_call_id"),
        ({"role": "user", "content": "Hi", "reasoning": "hm"}, "messages[0].reasoning"),
        ({"role": "tool", "content": "Hi"}, "messages[0].tool_call_id"),
        ({"role": "tool", "content": "Hi", "tool_call_id": 7}, "messages[0].tool_call_id"),
        ({"role": "assistant", "tool_calls": {}}, "messages[0].tool_calls"),
        ({"role": "assistant", "tool_calls": ["f"]}, "messages[0].tool_calls[0]"),
        ({"role": "assistant", "tool_calls": [{"id": "c"}]}, "messages[0].tool_calls[0].function"),
        ({"role": "assistant", "tool_calls": [{**CALL, "id": 7}]}, "messages[0].tool_calls[0].id"),
        ({"role": "assistant", "tool_calls": [{**CALL, "type": "code"}]}, "messages[0].tool_calls[0].type"),
        (calling({"port": "Hull"}), ARGUMENTS),
        (calling("[" * 5_000), ARGUMENTS),
        (calling("9" * 5_000), ARGUMENTS),
        (calling('{"a": NaN}'), f"{ARGUMENTS}.a"),
        (calling('{"a": "\\ud83d"}'), f"{ARGUMENTS}.a"),
    ],
)
def test_a_bad_message_is_told_by_its_place(message: Any, param: str) -> None:
    with pytest.raises(ApiError) as error:
        normal(message)
    assert (error.value.status, error.value.param) == (400, param) and param in str(error.value)


def test_arguments_that_are_no_json_pass_as_the_engine_takes_them() -> None:
    assert normal(calling("not JSON"))[0]["tool_calls"][0]["function"]["arguments"] == "not JSON"


def test_many_and_long_messages_have_limits() -> None:
    for messages in ([USER] * (limits.MESSAGES + 1), [{"role": "user", "content": "x" * (limits.CHARACTERS + 1)}]):
        with pytest.raises(ApiError) as error:
            normal(*messages)
        assert (error.value.status, error.value.param) == (400, "messages")
    assert len(normal(*[USER] * limits.MESSAGES)) == limits.MESSAGES


@pytest.mark.parametrize("messages", [None, [], {}, "Hi", 7, {"role": "user", "content": "Hi"}])
def test_what_is_no_list_of_messages_is_told(messages: Any) -> None:
    with pytest.raises(ApiError, match="messages") as error:
        parse_chat({"messages": messages}, {}, Config())
    assert error.value.param == "messages"
