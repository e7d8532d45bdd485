"""Histories as clients send them back: with what an SDK kept of an answer, with refusals, with broken calls."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from tests.api.conftest import Api
from tests.api.test_responses import ASK, by_client, logged


class Tide(BaseModel):
    port: str


def test_what_the_sdk_parsed_of_an_answer_goes_back_with_it(api: Api) -> None:
    """`parse` keeps what it read of a call with it; who dumps the answer into the history sends that, too."""
    api.engine.words, api.engine.calls = ("I look.",), (("Tide", '{"port": "Hull"}'),)
    api.engine.finish_reason = "tool_calls"

    async def call(client: openai.AsyncOpenAI) -> tuple[Any, Any]:
        asked: Any = [{"role": "user", "content": ASK}]
        tools: Any = [openai.pydantic_function_tool(Tide)]
        chat = await client.chat.completions.parse(model="policy", messages=asked, tools=tools)
        flat: Any = [{"type": "function", "strict": True, **tools[0]["function"]}]
        response = await client.responses.parse(model="policy", input=ASK, tools=flat)
        items = [{"parsed_arguments": {"port": "Hull"}, **item.model_dump()} for item in response.output]
        return chat.choices[0].message.model_dump(), items

    message, items = by_client(api, call)
    assert message["tool_calls"][0]["function"]["parsed_arguments"] == {"port": "Hull"}
    chat = api.chat(messages=[{"role": "user", "content": ASK}, message, {"role": "user", "content": "So?"}])
    notes = {"namespace": "n", "async": False, "caller": {"type": "direct"}, "status": "completed", "id": "fc_1"}
    told = [{"role": "user", "content": ASK}, items[0], {**items[1], **notes}, {"role": "user", "content": "So?"}]
    response = api.client.post("/v1/responses", json={"input": told, "prompt_cache_options": {"mode": "explicit"}})
    for answer in (chat, response):
        assert answer.status_code == 200, answer.text
        said = logged(api, answer.json()["id"]).messages[1]
        assert "parsed" not in json.dumps(said) and said["tool_calls"][0]["function"]["arguments"] == '{"port": "Hull"}'


def test_a_refusal_in_the_history_is_a_text(api: Api) -> None:
    part = {"type": "refusal", "refusal": "I cannot."}
    history = [{"role": "user", "content": ASK}, {"type": "message", "role": "assistant", "content": [part]}]
    told = api.client.post("/v1/responses", json={"input": [*history, {"role": "user", "content": "Why?"}]})
    assert logged(api, told.json()["id"]).messages[1]["content"] == [{"type": "text", "text": "I cannot."}]


CALLED: Any = {"type": "function_call", "call_id": "c1", "name": "tide", "arguments": "{}"}
BROKEN = {**CALLED, "call_id": "c2", "arguments": '{"a": [NaN]}'}


@pytest.mark.parametrize(
    ("items", "param"),
    [
        ([{"role": "user", "content": ASK}, BROKEN], "input[1].arguments.a[0]"),
        ([{"role": "assistant", "content": "I look."}, CALLED, BROKEN], "input[2].arguments.a[0]"),
        ([CALLED, {"type": "reasoning"}, BROKEN], "input[2].arguments.a[0]"),
        ([CALLED, {"type": "function_call_output", "call_id": "c1", "output": "4"}, BROKEN], "input[2].arguments.a[0]"),
        ([{**BROKEN, "arguments": "[" * 5_000}], "input[0].arguments"),
    ],
)
@pytest.mark.parametrize("instructions", [None, "Be brief."])
def test_arguments_are_told_by_the_item_that_holds_them(
    api: Api, items: list[Any], param: str, instructions: str | None
) -> None:
    """Calls of one turn are one message of the chat; what is wrong with one is told as the client sent it."""
    error = api.client.post("/v1/responses", json={"input": items, "instructions": instructions}).json()["error"]
    assert error["param"] == param and error["message"].startswith(param) and "messages" not in error["message"]


@pytest.mark.parametrize("instructions", [None, "Be brief."])
def test_reasoning_alone_is_no_input(api: Api, instructions: str | None) -> None:
    body = {"input": [{"type": "reasoning", "id": "rs_1", "summary": []}], "instructions": instructions}
    answer = api.client.post("/v1/responses", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input")
    assert "nothing but reasoning" in answer.json()["error"]["message"] and api.engine.asked == []
