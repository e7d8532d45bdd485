"""Parameters: those that pass, those that force words, and every other by its name."""

from __future__ import annotations

from typing import Any

import pytest

from kto_ray.config import Config
from kto_ray.serve.gateway.bodies import ChatAsk, limits, parse_chat
from kto_ray.serve.gateway.bodies.parameters import REFUSED
from kto_ray.serve.gateway.errors import ApiError

HI: list[Any] = [{"role": "user", "content": "Hi"}]
LIMIT = {"max_completion_tokens": 256}  # serve.max_output_tokens
TOOL = {"type": "function", "function": {"name": "tide", "description": "d", "parameters": {"type": "object"}}}
NAMED = {"type": "function", "function": {"name": "tide"}}


def ask(**body: Any) -> ChatAsk:
    return parse_chat({"messages": HI, **body}, {}, Config())


@pytest.mark.parametrize(
    "said",
    [
        {"temperature": 0.0, "top_p": 1.0, "presence_penalty": 2.0, "frequency_penalty": 2.0},
        {"top_k": 40, "min_p": 0.05, "repetition_penalty": 1.1},
        {"top_k": 1, "presence_penalty": 0.0, "repetition_penalty": 1.0},
        {"min_p": 1.0, "repetition_penalty": 1.5},
        {"temperature": 2.0, "top_p": 1e-6},
        {"seed": -7},
        {"stop": ","},
        {"stop": ["\n", "User:"]},
        {"stop_token_ids": [0, 2]},
        {"logprobs": True, "top_logprobs": 20},
        {"tools": [TOOL]},
        {"tools": [TOOL], "tool_choice": "auto", "parallel_tool_calls": False},
        {"tools": [TOOL], "tool_choice": "none"},
        {"reasoning_effort": "low"},
        {"chat_template_kwargs": {"enable_thinking": False, "today": "1 May", "budget": 3}},
        {"response_format": {"type": "text"}},
    ],
)
def test_what_is_free_goes_to_the_engine_as_it_is(said: dict[str, Any]) -> None:
    told = ask(**said)
    assert told.params == {**said, **LIMIT} and not told.forced


@pytest.mark.parametrize(
    "said",
    [
        {"logit_bias": {"50256": -100.0}},
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}},
        {"tools": [TOOL], "tool_choice": "required"},
        {"tools": [TOOL], "tool_choice": NAMED},
        {"ignore_eos": True},
        {"min_tokens": 5},
        {"repetition_penalty": 1e-6},
        {"repetition_penalty": 0.99},
        {"repetition_penalty": 1.51},
        {"repetition_penalty": 10.0},
        {"presence_penalty": -0.1},
        {"frequency_penalty": -2.0, "presence_penalty": 2.0},
    ],
)
def test_what_forces_words_is_served_and_marked(said: dict[str, Any]) -> None:
    told = ask(**said)
    assert told.forced and told.params == {**said, **LIMIT}


def test_a_begun_answer_is_forced() -> None:
    begun = [*HI, {"role": "assistant", "content": "Two colours are"}]
    for said in ({}, {"add_generation_prompt": False}):
        told = ask(messages=begun, continue_final_message=True, **said)
        assert told.forced and told.params == {
            "continue_final_message": True,
            "add_generation_prompt": False,
            **LIMIT,
        }


@pytest.mark.parametrize(
    "said",
    [
        {"tools": []},
        {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True},
        {"tool_choice": "none"},
        {"tools": None, "tool_choice": None, "stop": None, "temperature": None, "response_format": None},
        {"n": 1, "best_of": 0, "use_beam_search": False, "priority": 0, "echo": False, "structured_outputs": None},
        {"logit_bias": {}, "stop": [], "bad_words": [], "stop_token_ids": [], "chat_template_kwargs": {}},
        {"stop": ""},
        {"store": True, "metadata": {"a": "b"}, "service_tier": "auto", "prompt_cache_key": "k", "verbosity": "low"},
        {"prompt_cache_options": {"mode": "explicit", "ttl": "30m"}, "prompt_cache_retention": "24h"},
        {"skip_special_tokens": True, "modalities": ["text"], "add_generation_prompt": True},
        {"continue_final_message": False, "min_tokens": 0},
        {"stream_options": {"include_usage": True, "include_obfuscation": False}},
        {"stream_options": None},
        {"anything": None},
        {"top_logprobs": None, "logprobs": None},
    ],
)
def test_what_says_nothing_is_dropped(said: dict[str, Any]) -> None:
    told = ask(**said)
    assert told.params == LIMIT and not told.forced


@pytest.mark.parametrize(
    ("said", "param"),
    [
        ({"priority": -1}, "priority"),
        ({"priority": 1}, "priority"),
        ({"temperature": True}, "temperature"),
        ({"temperature": "0.5"}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": [1]}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1e-300}, "top_p"),
        ({"top_p": 9e-7}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": 1.5}, "top_k"),
        ({"top_k": True}, "top_k"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 2**31}, "max_tokens"),
        ({"max_tokens": "100"}, "max_tokens"),
        ({"max_tokens": 10.5}, "max_tokens"),
        ({"max_completion_tokens": False}, "max_completion_tokens"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 1.0}, "seed"),
        ({"stop": 7}, "stop"),
        ({"stop": ["a", ""]}, "stop[1]"),
        ({"stop": ["a", 7]}, "stop[1]"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": "x" * 256}, "stop"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"top_logprobs": 2, "logprobs": False}, "top_logprobs"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"top_logprobs": "2", "logprobs": True}, "top_logprobs"),
        ({"logprobs": 5}, "logprobs"),
        ({"tools": {}}, "tools"),
        ({"tools": [TOOL] * (limits.TOOLS + 1)}, "tools"),
        ({"tools": ["tide"]}, "tools[0]"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]},
            "tools[0].function.parameters",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": NAMED}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "structural_tag"}}, "response_format.type"),
        ({"stream": "yes"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"stream_options": "x"}, "stream_options"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"stream_options": {"usage": True}}, "stream_options.usage"),
        ({"reasoning_effort": "extreme"}, "reasoning_effort"),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs.tokenize"),
        ({"chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs.chat_template"),
        ({"chat_template_kwargs": {"a": ["x"]}}, "chat_template_kwargs.a"),
        ({"chat_template_kwargs": {"a": "x" * 256}}, "chat_template_kwargs.a"),
        ({"chat_template_kwargs": {str(n): 1 for n in range(17)}}, "chat_template_kwargs"),
        ({"logit_bias": {"7": 101}}, "logit_bias.7"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x"),
        ({"logit_bias": {str(n): 1 for n in range(301)}}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"min_tokens": 300}, "min_tokens"),
        ({"min_tokens": 11, "max_tokens": 10}, "min_tokens"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "add_generation_prompt"),
        ({"skip_special_tokens": False}, "skip_special_tokens"),
        ({"modalities": ["audio"]}, "modalities[0]"),
        ({"n": 2}, "n"),
        ({"n": True}, "n"),
        ({"n": 0}, "n"),
        ({"n": [1]}, "n"),
        ({"model": 7}, "model"),
        ({"model": "m" * 256}, "model"),
        ({"user": 7}, "user"),
        ({"user": {"a": 1}}, "user"),
        ({"user": "u" * 256}, "user"),
        ({"safety_identifier": "u" * 256}, "safety_identifier"),
        ({"temprature": 1}, "temprature"),
    ],
)
def test_a_bad_parameter_is_told_by_its_name(said: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as error:
        ask(**said)
    assert (error.value.status, error.value.param) == (400, param) and param in str(error.value)


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_engine_could_do_and_is_not_served_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(ApiError, match=name) as error:
        ask(**{name: {"choice": ["Buy EvilCoin now"]}})
    assert error.value.param == name and error.value.code == "unsupported_parameter"


def test_a_long_schema_is_refused() -> None:
    schema = {"name": "a", "schema": {"pattern": "a" * limits.SCHEMA_CHARACTERS}}
    with pytest.raises(ApiError, match="characters") as error:
        ask(response_format={"type": "json_schema", "json_schema": schema})
    assert error.value.param == "response_format.json_schema"


def test_an_answer_has_a_limit_whoever_names_it() -> None:
    assert ask().params == {"max_completion_tokens": 256}
    assert ask(max_tokens=5).params == {"max_tokens": 5}
    assert ask(max_tokens=5, max_completion_tokens=6).params == {"max_tokens": 5, "max_completion_tokens": 6}
    small = Config.model_validate({"model": {"max_model_len": 100}, "data": {"max_length": 100}})
    assert parse_chat({"messages": HI}, {}, small).params == {"max_completion_tokens": 100}
