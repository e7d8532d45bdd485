"""Chat: what the client gets is what is logged, and it is logged before the client has it all."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from kto_ray.records.completions import Arm, ExternalRef
from kto_ray.store import adapters, completions
from tests.api.conftest import HI, Api
from tests.support.engine import PROMPT


def packed(*ids: int) -> bytes:
    return b"".join(one.to_bytes(4, "little") for one in ids)


def logged(api: Api, name: str) -> Any:
    with api.store.read() as tx:
        return completions.get(tx, name)


def eventually(api: Api, name: str) -> Any:
    """The row of an answer that nobody waited for."""
    for _ in range(500):
        if row := logged(api, name):
            return row
        time.sleep(0.01)
    raise AssertionError(f"no row of {name}")


def events(text: str) -> list[Any]:
    told = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    return [one if one == "[DONE]" else json.loads(one) for one in told]


def test_a_whole_answer_is_signed_and_logged(api: Api) -> None:
    headers = {"X-Kto-Chat-Id": "k", "X-Kto-Message-Id": "m", "X-Kto-Task": "title"}
    answer = api.client.post(
        "/v1/chat/completions", json={"messages": HI, "user": "ann", "temperature": 0.3}, headers=headers
    )
    told = answer.json()
    assert answer.status_code == 200 and answer.headers["x-kto-completion-id"] == told["id"]
    assert (told["model"], told["system_fingerprint"]) == ("policy", "policy@base")
    row = logged(api, told["id"])
    assert (row.text, row.status, row.finish_reason) == ("The sky is blue.", "complete", "stop")
    assert (row.user, row.arm, row.task, row.prompt_tokens, row.completion_tokens) == ("ann", "champion", "title", 7, 5)
    assert row.external == ExternalRef("default", "k", "m") and not row.forced
    assert row.params == {"temperature": 0.3, "max_completion_tokens": 256}
    assert (row.prompt_ids, row.answer_ids) == (packed(*PROMPT), packed(0, 1, 2, 3, 4))
    assert "token_ids" not in answer.text, "they are the log's"


@pytest.mark.parametrize("usage", [True, False])
def test_a_stream_is_signed_logged_and_ends_as_asked(api: Api, usage: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if usage else {}
    answer = api.chat(stream=True, **options)
    *chunks, last = events(answer.text)
    assert last == "[DONE]" and answer.headers["content-type"].startswith("text/event-stream")
    ids = {chunk["id"] for chunk in chunks}
    assert ids == {answer.headers["x-kto-completion-id"]}
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"]) == "The sky is blue."
    assert ("usage" in chunks[-1]) is usage
    row = logged(api, ids.pop())
    assert (row.text, row.status, row.completion_tokens) == ("The sky is blue.", "complete", 5)
    assert row.first_token_s is not None
    assert (row.prompt_ids, row.answer_ids) == (packed(*PROMPT), packed(0, 1, 2, 3, 4))


@pytest.mark.parametrize("stream", [False, True])
def test_a_replica_that_dies_before_its_first_event_costs_no_error(api: Api, stream: bool) -> None:
    api.engine.dies = 1
    assert api.chat(stream=stream).status_code == 200
    assert len(api.engine.asked) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_kills_replicas_kills_two_and_not_all(api: Api, stream: bool) -> None:
    api.engine.dies = 9
    answer = api.chat(stream=stream)
    assert (answer.status_code, answer.json()["error"]["type"]) == (503, "server_error")
    assert len(api.engine.asked) == 2


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("code", [500, 503])
def test_a_replica_that_tells_of_its_own_failure_costs_no_error(api: Api, stream: bool, code: int) -> None:
    api.engine.refusal, api.engine.refuses = {"message": "the engine has ended", "code": code, "type": "x"}, 1
    assert api.chat(stream=stream).status_code == 200
    assert len(api.engine.asked) == 2
    api.engine.refuses = 9
    assert api.chat(stream=stream).status_code == 503
    assert len(api.engine.asked) == 4, "a request is tried twice and no more"


LACKED = {"message": "adapter policy@v1 cannot be loaded now", "code": 503, "type": "adapter_unavailable"}


@pytest.mark.parametrize("stream", [False, True])
def test_a_replica_that_lacks_a_version_costs_no_error_where_another_holds_it(api: Api, stream: bool) -> None:
    """Who refuses is free at once, and may be asked again and again."""
    with api.store.write() as tx:
        adapters.set_alias(tx, "champion", "policy@v1", 1.0)
    api.holding("policy@v1")
    api.engine.refusal, api.engine.refuses = LACKED, 7
    told = api.chat(stream=stream)
    assert told.status_code == 200 and "policy@v1" in told.text
    assert len(api.engine.asked) == 8


def test_a_version_that_no_replica_holds_is_asked_for_twice(api: Api) -> None:
    with api.store.write() as tx:
        adapters.set_alias(tx, "challenger", "policy@v1", 1.0)
    api.holding()
    api.engine.refusal = LACKED
    told = api.chat(model="policy@challenger")
    assert (told.status_code, told.json()["error"]["code"]) == (503, "adapter_unavailable")
    assert len(api.engine.asked) == 2


def test_patience_with_replicas_that_lack_a_version_ends(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kto_ray.serve.gateway.answer.PATIENT_S", 0.3)
    with api.store.write() as tx:
        adapters.set_alias(tx, "champion", "policy@v1", 1.0)
    api.holding("policy@v1")
    api.engine.refusal = LACKED
    assert api.chat().status_code == 503 and len(api.engine.asked) > 2


def test_a_request_that_is_refused_is_asked_once(api: Api) -> None:
    api.engine.refusal = {"message": "max_tokens is too large", "code": 400, "param": "max_tokens", "type": "bad"}
    assert api.chat().status_code == 400
    assert len(api.engine.asked) == 1


def test_a_stream_that_breaks_off_says_so_and_is_logged_as_failed(api: Api) -> None:
    api.engine.breaks_after = 2
    answer = api.chat(stream=True)
    told = events(answer.text)
    assert told[-1]["error"]["type"] == "server_error" and "[DONE]" not in told
    row = eventually(api, answer.headers["x-kto-completion-id"])
    assert (row.status, row.text) == ("failed", "The sky")


def test_what_the_engine_refuses_is_told_as_it_says(api: Api) -> None:
    api.engine.refusal = {"message": "max_tokens is too large", "code": 400, "param": "max_tokens", "type": "bad"}
    answer = api.chat(max_tokens=10**9)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "max_tokens" and "too large" in answer.json()["error"]["message"]
    with api.store.read() as tx:
        assert completions.count_of_adapter(tx, "policy@base") == 0


def test_a_bad_request_is_told_by_its_field_before_anything_is_generated(api: Api) -> None:
    answer = api.client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": ["Hi"]}]})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (400, "invalid_request_error")
    assert error["param"] == "messages[0].content[0]" and error["param"] in error["message"]
    assert api.engine.asked == []


def test_models_are_the_aliases_and_what_they_name_where_every_replica_holds_it(api: Api) -> None:
    with api.store.write() as tx:
        adapters.set_alias(tx, "previous", "policy@v1", 1.0)
    api.holding("policy@v0", "policy@v1")
    assert api.chat(model="policy@v0").status_code == 404, "it would stay in a slot for as long as somebody asks for it"
    assert [one["id"] for one in api.client.get("/v1/models").json()["data"]] == [
        "policy",
        "policy@champion",
        "policy@previous",
        "policy@base",
        "policy@v1",
    ]
    assert api.chat(model="policy@v1").json()["system_fingerprint"] == "policy@v1"
    assert api.engine.asked[-1][1] == "policy@v1"
    pinned = logged(api, api.chat(model="policy@base", user="ann").json()["id"])
    assert pinned.arm is Arm.PINNED and pinned.rollout is None


def test_a_model_that_is_not_held_is_told_with_those_that_are(api: Api) -> None:
    answer = api.chat(model="policy@v9")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert "policy@base" in answer.json()["error"]["message"]


@pytest.mark.parametrize("name", ["policy", "policy@base", "policy%40base", "policy%40champion"])
def test_one_model_has_a_card(api: Api, name: str) -> None:
    card = api.client.get(f"/v1/models/{name}").json()
    assert card == {"id": name.replace("%40", "@"), "object": "model", "created": 0, "owned_by": "kto_ray"}


@pytest.mark.parametrize("name", ["gpt-4", "policy@v9", "a/b", "policy/", "%00", "%ff", "é"])
def test_a_model_that_is_not_served_has_none(api: Api, name: str) -> None:
    answer = api.client.get(f"/v1/models/{name}")
    assert answer.status_code == 404 and set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_tool_calls_are_kept_with_the_completion(api: Api) -> None:
    tool = {"type": "function", "function": {"name": "tide", "parameters": {"type": "object"}}}
    api.engine.words, api.engine.finish_reason = (), "tool_calls"
    api.engine.calls = (("tide", '{"port": "Hull"}'), ("wind", "{}"))
    for stream in (False, True):
        answer = api.chat(tools=[tool], stream=stream)
        row = logged(api, answer.headers["x-kto-completion-id"])
        assert [(call["id"], call["function"]["name"]) for call in row.tool_calls] == [
            ("call-0", "tide"),
            ("call-1", "wind"),
        ]
        assert row.tool_calls[0]["function"]["arguments"] == '{"port": "Hull"}' and row.text == ""
        assert row.finish_reason == "tool_calls" and row.params["tools"] == [tool] and not row.forced
        thumb = api.client.post("/v1/feedback", json={"completion_id": row.id, "kind": "thumb", "value": False})
        assert thumb.json()["label"] == "down", "what it called was judged"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("reason", ["abort", "error", "repetition", "content_filter", "a later one"])
def test_what_the_engine_broke_off_is_told_as_it_says_and_no_label(api: Api, reason: str, stream: bool) -> None:
    api.engine.finish_reason = reason
    answer = api.chat(user="ann", stream=stream)
    told = events(answer.text)[-2] if stream else answer.json()
    assert told["choices"][0]["finish_reason"] == reason
    row = logged(api, answer.headers["x-kto-completion-id"])
    assert (row.status, row.finish_reason, row.text) == ("failed", reason, "The sky is blue.")
    thumb = api.say(row.id, user="ann").json()
    assert thumb["label"] is None and "failed" in thumb["why"]


@pytest.mark.parametrize("reason", ["stop", "length", "tool_calls", "function_call"])
def test_an_answer_that_ends_is_complete(api: Api, reason: str) -> None:
    api.engine.finish_reason = reason
    assert logged(api, api.chat().json()["id"]).status == "complete"


def test_an_answer_whose_words_were_forced_is_marked_for_good(api: Api) -> None:
    for stream in (False, True):
        answer = api.chat(logit_bias={"7": 100}, stream=stream)
        assert logged(api, answer.headers["x-kto-completion-id"]).forced


def test_a_penalty_that_forces_words_is_served_and_its_thumb_is_no_label(api: Api) -> None:
    answer = api.chat(user="ann", repetition_penalty=1e-6)
    assert answer.status_code == 200 and logged(api, answer.json()["id"]).forced
    thumb = api.say(answer.json()["id"], user="ann").json()
    assert thumb["label"] is None and "forced" in thumb["why"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_character_that_no_database_takes_is_replaced_in_what_is_told_and_kept(api: Api, stream: bool) -> None:
    api.engine.words = ("a\0b", r" \u0000")
    body = {"messages": HI, "user": "ann", "stream": stream}
    answer = api.client.post("/v1/chat/completions", json=body)
    with api.store.read() as tx:
        [row] = completions.of_user(tx, "ann")
    assert row.text == "a\ufffdb" + r" \u0000" and row.status == "complete"
    assert "\\u0000b" not in answer.text and ("a\ufffdb" in answer.text or r"a\ufffdb" in answer.text)
