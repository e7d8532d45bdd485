"""POST /v1/responses and the rest of OpenAI's surface, as the unchanged openai client calls it."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import httpx
import openai
import pytest
from openai.types.responses import Response, ResponseCompletedEvent, ResponseFunctionToolCall, ResponseTextDeltaEvent

from kto_ray.store import completions
from tests.api.conftest import Api

T = TypeVar("T")

TIDE: Any = {"type": "function", "name": "tide", "parameters": {"type": "object"}, "strict": False}
ASK = "Why is the sky blue?"


def by_client(api: Api, call: Callable[[openai.AsyncOpenAI], Awaitable[T]]) -> T:
    async def run() -> T:
        transport = httpx.ASGITransport(app=api.client.app)
        http: Any = httpx.AsyncClient(transport=transport, base_url="http://localhost/v1")
        async with http:
            client = openai.AsyncOpenAI(api_key="none", base_url="http://localhost/v1", http_client=http, max_retries=0)
            return await call(client)

    return asyncio.run(run())


def logged(api: Api, name: str) -> Any:
    with api.store.read() as tx:
        return completions.get(tx, name)


def strict(response: Any) -> Response:
    """Every field as OpenAI's types have it; the client itself does not look."""
    return Response.model_validate(json.loads(json.dumps(response)), strict=False)


def test_a_whole_response(api: Api) -> None:
    told = by_client(
        api,
        lambda client: client.responses.create(
            model="policy", instructions="Be brief.", input=ASK, temperature=0.3, max_output_tokens=9, user="ann"
        ),
    )
    assert (told.output_text, told.status, told.model) == ("The sky is blue.", "completed", "policy")
    assert told.usage and (told.usage.input_tokens, told.usage.output_tokens) == (7, 5)
    assert (told.instructions, told.temperature, told.max_output_tokens) == ("Be brief.", 0.3, 9)
    row = logged(api, told.id)
    assert told.id.startswith("resp_") and (row.user, row.text, row.status) == ("ann", "The sky is blue.", "complete")
    assert row.messages == ({"role": "system", "content": "Be brief."}, {"role": "user", "content": ASK})
    assert row.params == {"temperature": 0.3, "max_completion_tokens": 9}
    assert api.say(told.id, user="ann").json()["status"] == "recorded"


def test_a_streamed_response_has_openais_events_in_order(api: Api) -> None:
    async def call(client: openai.AsyncOpenAI) -> list[Any]:
        return [event async for event in await client.responses.create(model="policy", input=ASK, stream=True)]

    events = by_client(api, call)
    assert [kind for kind, _ in itertools.groupby(event.type for event in events)] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if isinstance(event, ResponseTextDeltaEvent)]
    assert deltas == ["The", " sky", " is", " blue", "."]
    last = events[-1]
    assert isinstance(last, ResponseCompletedEvent) and last.response.output_text == "The sky is blue."
    assert {event.response.id for event in events if hasattr(event, "response")} == {last.response.id}
    assert logged(api, last.response.id).text == "The sky is blue."


def test_every_event_is_whole_by_openais_types(api: Api) -> None:
    """The client builds its types without a check; here they are checked."""
    from openai.types.responses import ResponseStreamEvent
    from pydantic import TypeAdapter

    adapter: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
    api.engine.calls = (("tide", '{"port": "Hull"}'),)
    answer = api.client.post("/v1/responses", json={"input": ASK, "tools": [TIDE], "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    for block in answer.text.strip().split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert adapter.validate_python(event).type == event["type"]
    strict(api.client.post("/v1/responses", json={"input": ASK, "tools": [TIDE]}).json())


def test_the_helper_that_gathers_a_stream_gathers_it(api: Api) -> None:
    api.engine.calls = (("tide", '{"port": "Hull"}'), ("wind", "{}"))

    async def call(client: openai.AsyncOpenAI) -> Any:
        async with client.responses.stream(model="policy", input=ASK, tools=[TIDE]) as stream:
            async for _ in stream:
                pass
            return await stream.get_final_response()

    told = by_client(api, call)
    assert told.output_text == "The sky is blue."
    calls = [item for item in told.output if isinstance(item, ResponseFunctionToolCall)]
    assert [(one.name, one.call_id, one.arguments) for one in calls] == [
        ("tide", "call-0", '{"port": "Hull"}'),
        ("wind", "call-1", "{}"),
    ]
    assert [call["id"] for call in logged(api, told.id).tool_calls] == ["call-0", "call-1"]


def test_a_conversation_with_tools_is_a_chat(api: Api) -> None:
    history: Any = [
        {"role": "user", "content": [{"type": "input_text", "text": "When is high tide?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"},
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "I look.", "annotations": [], "logprobs": []}],
        },
        {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "tide", "arguments": "{}", "status": None},
        {"type": "function_call", "id": "fc_2", "call_id": "c2", "name": "wind", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "high at 4"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "none"}]},
        {"role": "developer", "content": "Be brief."},
    ]
    told = by_client(
        api,
        lambda client: client.responses.create(
            input=history,
            tools=[TIDE],
            tool_choice="auto",
            text={"format": {"type": "text"}},
            reasoning={"effort": "low", "summary": "auto"},
            store=False,
            include=["reasoning.encrypted_content"],
            truncation="disabled",
        ),
    )
    row = logged(api, told.id)
    called = [
        {"id": f"c{n}", "type": "function", "function": {"name": name, "arguments": "{}"}}
        for n, name in ((1, "tide"), (2, "wind"))
    ]
    assert row.messages == (
        {"role": "user", "content": [{"type": "text", "text": "When is high tide?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "I look."}], "tool_calls": called},
        {"role": "tool", "content": "high at 4", "tool_call_id": "c1"},
        {"role": "tool", "content": [{"type": "text", "text": "none"}], "tool_call_id": "c2"},
        {"role": "developer", "content": "Be brief."},
    )
    assert row.params["tools"][0]["function"]["name"] == "tide" and row.params["reasoning_effort"] == "low"
    assert not row.forced


def test_what_a_response_answered_goes_back_as_input(api: Api) -> None:
    """Stateless clients send the output items of the last turn with the next."""
    first = api.client.post("/v1/responses", json={"input": ASK}).json()
    items = [{"role": "user", "content": ASK}, *first["output"], {"role": "user", "content": "And at night?"}]
    again = api.client.post("/v1/responses", json={"input": items})
    assert again.status_code == 200
    assert [message["role"] for message in logged(api, again.json()["id"]).messages] == ["user", "assistant", "user"]


def test_an_answer_that_was_cut_off_is_incomplete(api: Api) -> None:
    api.engine.finish_reason = "length"
    told = api.client.post("/v1/responses", json={"input": ASK}).json()
    assert (told["status"], told["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    streamed = api.client.post("/v1/responses", json={"input": ASK, "stream": True}).text
    assert "event: response.incomplete" in streamed and "response.completed" not in streamed


@pytest.mark.parametrize(("reason", "status"), [("content_filter", "incomplete"), ("abort", "failed")])
def test_an_answer_that_was_broken_off_is_not_completed(api: Api, reason: str, status: str) -> None:
    api.engine.finish_reason = reason
    told = strict(api.client.post("/v1/responses", json={"input": ASK}).json())
    assert told.status == status and (told.error is None) is (status == "incomplete")
    assert (told.incomplete_details is not None) is (status == "incomplete")
    assert logged(api, told.id).status == "failed"
    streamed = api.client.post("/v1/responses", json={"input": ASK, "stream": True}).text
    assert f"event: response.{status}" in streamed and "response.completed" not in streamed


def test_a_schema_forces_words(api: Api) -> None:
    shape = {"format": {"type": "json_schema", "name": "a", "schema": {"type": "object"}, "strict": True}}
    told = api.client.post("/v1/responses", json={"input": ASK, "text": shape}).json()
    row = logged(api, told["id"])
    assert row.forced and row.params["response_format"]["json_schema"]["schema"] == {"type": "object"}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": None}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": 7}, "input"),
        ({"input": {"role": "user"}}, "input"),
        ({"input": ["Hi"]}, "input[0]"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"input": [{"type": ["message"]}]}, "input[0]"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content[0]"),
        ({"input": [{"role": "user", "content": ["Hi"]}]}, "input[0].content[0]"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": 7}]}, "input[0].output"),
        ({"input": ASK, "previous_response_id": "resp_1"}, "previous_response_id"),
        ({"input": ASK, "conversation": "conv_1"}, "conversation"),
        ({"input": ASK, "background": True}, "background"),
        ({"input": ASK, "max_output_tokens": True}, "max_output_tokens"),
        ({"input": ASK, "max_output_tokens": 0}, "max_output_tokens"),
        ({"input": ASK, "temperature": "hot"}, "temperature"),
        ({"input": ASK, "top_p": 1e-300}, "top_p"),
        ({"input": ASK, "tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"input": ASK, "tool_choice": "required"}, "tool_choice"),
        ({"input": ASK, "tools": [TIDE], "tool_choice": {"type": "function", "name": "f"}}, "tool_choice"),
        ({"input": ASK, "text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format"),
        ({"input": ASK, "messages": []}, "messages"),
        ({"input": ASK, "user": "u" * 256}, "user"),
        ({"input": ASK, "n": 2}, "n"),
    ],
)
def test_a_bad_request_is_told_by_its_own_field(api: Api, body: dict[str, Any], param: str) -> None:
    answer = api.client.post("/v1/responses", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param) and param in error["message"]
    assert api.engine.asked == []


def test_the_client_raises_what_is_told(api: Api) -> None:
    with pytest.raises(openai.BadRequestError, match="previous_response_id"):
        by_client(api, lambda client: client.responses.create(input=ASK, previous_response_id="resp_1"))
    with pytest.raises(openai.NotFoundError):
        by_client(api, lambda client: client.responses.create(input=ASK, model="gpt-5"))
    with pytest.raises(openai.NotFoundError, match="chat/completions"):
        by_client(api, lambda client: client.completions.create(model="policy", prompt=ASK))

    async def stream(client: openai.AsyncOpenAI) -> None:
        async for _ in await client.responses.create(input=ASK, stream=True):
            pass

    api.engine.breaks_after = 2
    answer = api.client.post("/v1/responses", json={"input": ASK, "stream": True}).text
    last = json.loads(answer.strip().rsplit("data: ", 1)[1])
    assert last["type"] == "error" and last["sequence_number"] == 6 and last["error"]["type"] == "server_error"
    with pytest.raises(openai.APIError, match="broke off"):
        by_client(api, stream)


def test_models_and_chats_by_the_client(api: Api) -> None:
    async def call(client: openai.AsyncOpenAI) -> tuple[list[str], str, str, str]:
        names = [model.id async for model in client.models.list()]
        card = await client.models.retrieve("policy@base")
        messages: Any = [{"role": "user", "content": ASK}]
        answer = await client.chat.completions.create(model="policy", messages=messages)
        again = [*messages, answer.choices[0].message.model_dump(), {"role": "user", "content": "And at night?"}]
        async with client.chat.completions.stream(model="policy", messages=again) as stream:
            async for _ in stream:
                pass
            text = (await stream.get_final_completion()).choices[0].message.content
        return names, card.id, answer.choices[0].message.content or "", text or ""

    names, card, first, second = by_client(api, call)
    assert names == ["policy", "policy@champion", "policy@base"] and card == "policy@base"
    assert first == second == "The sky is blue."
