"""What passes the door is what the engine takes: its own request class and sampling parameters, without a model."""

from __future__ import annotations

from typing import Any

import pytest

from kto_ray.config import Config
from kto_ray.serve.gateway.bodies import parse_chat, parse_responses

HI: list[Any] = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "tide", "description": "d", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "tide", "arguments": "{}"}}
BEGUN = [*HI, {"role": "assistant", "content": "Two"}]
SAID: list[dict[str, Any]] = [
    {},
    {"stream": True},
    {"temperature": 0, "top_p": 1, "top_k": -1, "min_p": 1, "repetition_penalty": 10, "seed": -(2**63)},
    {"presence_penalty": -2, "frequency_penalty": 2, "stop": ["a", "b", "c", "d"], "stop_token_ids": [0, 1, 2, 3]},
    {"max_tokens": 1, "stop": ",", "include_stop_str_in_output": True},
    {"logprobs": True, "top_logprobs": 20},
    {"tools": [TOOL], "parallel_tool_calls": False},
    {"tools": [TOOL], "tool_choice": "required"},
    {"tools": [TOOL], "tool_choice": "none"},
    {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "tide"}}},
    {"reasoning_effort": "xhigh", "chat_template_kwargs": {"enable_thinking": False}},
    {"logit_bias": {"7": -100}, "min_tokens": 3, "ignore_eos": True},
    {"response_format": {"type": "text"}},
    {"response_format": {"type": "json_object"}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}},
    {"messages": BEGUN, "continue_final_message": True},
    {"messages": [{"role": "developer", "content": "Be brief."}, *HI]},
    {"messages": [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, *HI]},
    {"messages": [*HI, {"role": "assistant", "content": None}, *HI]},
    {"messages": [*HI, {"role": "assistant", "content": "4", "reasoning_content": "2 + 2"}, *HI]},
    {
        "messages": [
            *HI,
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c1", "content": "high at 4"},
        ]
    },
]


@pytest.mark.parametrize("said", SAID, ids=str)
def test_the_engine_takes_a_chat_and_its_messages_as_they_are(said: dict[str, Any]) -> None:
    takes(parse_chat({"messages": HI, **said}, {}, Config()).upstream("r"))


def test_the_engine_takes_a_response() -> None:
    shape = {"format": {"type": "json_schema", "name": "a", "schema": {"type": "object"}, "strict": True}}
    tool = {"type": "function", "name": "tide", "parameters": {"type": "object"}, "strict": True}
    body = {"input": "Hi", "instructions": "Be brief.", "text": shape, "tools": [tool], "stream": True}
    takes(parse_responses(body, {}, Config()).chat.upstream("r"))


def takes(upstream: dict[str, Any]) -> None:
    from ray.serve.llm.openai_api_models import ChatCompletionRequest  # with vLLM: 10 s

    request = ChatCompletionRequest(**{**upstream, "model": "policy@base"})
    assert [dict(message) for message in request.messages] == upstream["messages"]
    told = request.to_sampling_params(256, {})
    assert (told.n, told.max_tokens) == (1, 256) and request.return_token_ids
    assert request.model_extra in (None, {}), "a name that the engine does not know"
