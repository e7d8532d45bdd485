"""Chat: what the client gets is what is logged, and it is logged before the client has it all."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kto_ray.records.completions import Arm, ExternalRef
from kto_ray.store import completions
from tests.api.conftest import HI, Api


def logged(api: Api, name: str) -> Any:
    with api.store.read() as tx:
        return completions.get(tx, name)


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
    assert row.external == ExternalRef("default", "k", "m") and row.params["temperature"] == 0.3


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


def test_a_replica_that_dies_before_its_first_event_costs_no_error(api: Api) -> None:
    api.engine.dies = 2
    assert api.chat().status_code == 200
    assert len(api.engine.asked) == 3


def test_a_stream_that_breaks_off_says_so_and_is_logged_as_failed(api: Api) -> None:
    api.engine.breaks_after = 2
    answer = api.chat(stream=True)
    told = events(answer.text)
    assert told[-1]["error"]["type"] == "server_error" and "[DONE]" not in told
    name = answer.headers["x-kto-completion-id"]
    for _ in range(100):
        if row := logged(api, name):
            break
    assert (row.status, row.text) == ("failed", "The sky")


def test_what_the_engine_refuses_is_told_as_it_says(api: Api) -> None:
    api.engine.refusal = {"message": "max_tokens is too large", "code": 400, "param": "max_tokens", "type": "bad"}
    answer = api.chat(max_tokens=10**9)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "max_tokens" and "too large" in answer.json()["error"]["message"]
    with api.store.read() as tx:
        assert completions.count_of_adapter(tx, "policy@base") == 0


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({}, "messages", "non-empty list"),
        ({"messages": []}, "messages", "non-empty list"),
        ({"messages": [{"content": "Hi"}]}, "messages", "role"),
        ({"messages": HI, "n": 2}, "n", "n must be 1"),
        ({"messages": HI, "stream": "yes"}, "stream", "true or false"),
        ({"messages": HI, "user": 7}, "user", "must be a string"),
    ],
)
def test_a_bad_request_is_told_by_its_field(api: Api, body: dict[str, Any], param: str, words: str) -> None:
    answer = api.client.post("/v1/chat/completions", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error")
    assert words in error["message"] and api.engine.asked == []


def test_a_body_that_is_no_json_and_one_that_is_too_long_are_told(api: Api) -> None:
    assert api.client.post("/v1/chat/completions", content=b"{").json()["error"]["code"] == "invalid_json"
    assert api.client.post("/v1/chat/completions", content=b" " * (4 * 1024 * 1024 + 1)).status_code == 413


def test_models_are_the_alias_and_what_every_replica_holds(api: Api) -> None:
    api.holding("policy@v1")
    assert [one["id"] for one in api.client.get("/v1/models").json()["data"]] == [
        "policy",
        "policy@champion",
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
