"""What real clients send: served as they mean it, or refused by the field; never a 5xx.

What the real engine makes of it (its template, its parsers) is for tests/integration; here is what it is asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from kto_ray.config import Config
from kto_ray.records.completions import Completion, ExternalRef
from kto_ray.serve.gateway.api import build
from kto_ray.store import Store, completions
from tests.api.conftest import Api
from tests.support.engine import StandIn
from tests.support.local import local

CHAT = "/v1/chat/completions"
COLOURS: list[Any] = [{"role": "user", "content": "Name two colours of the rainbow."}]
TIDE = {"id": "c1", "type": "function", "function": {"name": "tide", "arguments": '{"port": "Hull"}'}}


def row(api: Api, answer: Any) -> Completion:
    assert answer.status_code == 200, answer.text
    with api.store.read() as tx:
        found = completions.get(tx, answer.json()["id"])
    assert found is not None and api.engine.asked[-1][0]["messages"] == list(found.messages)
    return found


def refused(answer: Any, param: str) -> str:
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error")
    assert param in error["message"]
    return str(error["message"])


@pytest.mark.parametrize(
    "said",
    [
        {"tools": []},  # agents, always
        {"tool_choice": "auto"},
        {"tool_choice": "none", "parallel_tool_calls": True},
        {"stream_options": {"include_usage": True}},  # libraries, also where nothing is streamed
        {"model": None},
        {"model": ""},
        {"functions": [], "logit_bias": {}, "stop": None, "user": None, "seed": None, "n": 1},
        {"store": False, "metadata": {}, "service_tier": "auto", "modalities": ["text"]},
    ],
)
def test_what_libraries_add_to_every_request(api: Api, said: dict[str, Any]) -> None:
    answer = api.chat(**said)
    assert row(api, answer).params == {"max_completion_tokens": 256}
    assert answer.json()["model"] == "policy" and answer.json()["usage"]["completion_tokens"] == 5


def test_log_probabilities_are_asked_for_whole(api: Api) -> None:
    refused(api.chat(top_logprobs=2), "top_logprobs")
    assert row(api, api.chat(logprobs=True, top_logprobs=2)).params["top_logprobs"] == 2


def test_plain_strings_among_the_parts_are_refused_so_no_round_meets_them(api: Api) -> None:
    mixed = [{"role": "user", "content": ["Read this line.", {"type": "text", "text": "Then write."}]}]
    refused(api.chat(messages=mixed), "messages[0].content[0]")
    with api.store.read() as tx:
        assert completions.count_of_adapter(tx, "policy@base") == 0


def test_a_history_as_sdks_dump_it(api: Api) -> None:
    dumped = {"role": "assistant", "content": "Red.", "refusal": None, "tool_calls": None, "audio": None}
    history = [*COLOURS, dumped, {"role": "user", "content": "And a third?", "name": None}]
    kept = row(api, api.chat(messages=history)).messages
    assert kept[1:] == ({"role": "assistant", "content": "Red."}, {"role": "user", "content": "And a third?"})


def test_a_history_with_a_call_of_a_tool(api: Api) -> None:
    history = [
        *COLOURS,
        {"role": "assistant", "content": None, "tool_calls": [TIDE]},
        {"role": "tool", "tool_call_id": "c1", "content": "high at 4"},
        {"role": "user", "content": "So when?"},
    ]
    kept = row(api, api.chat(messages=history)).messages
    assert kept[1] == {"role": "assistant", "tool_calls": [TIDE]} and kept[2] == history[2]


def test_role_developer_goes_to_the_engine_as_it_is(api: Api) -> None:
    told = [{"role": "developer", "content": "Answer in one short line."}, *COLOURS]
    assert list(row(api, api.chat(messages=told)).messages) == told


def test_a_begun_answer_is_continued_and_never_trains(api: Api) -> None:
    begun = [*COLOURS, {"role": "assistant", "content": "Two colours are"}]
    told = row(api, api.chat(messages=begun, continue_final_message=True, add_generation_prompt=False))
    assert told.forced and api.engine.asked[-1][0]["add_generation_prompt"] is False


def test_a_stop_string_reaches_the_engine_and_its_reason_the_row(api: Api) -> None:
    assert row(api, api.chat(stop=[","])).params["stop"] == [","]
    assert api.engine.asked[-1][0]["return_token_ids"] is True


def test_no_limit_is_the_configs(api: Api) -> None:
    told = row(api, api.chat(ignore_eos=True))
    assert told.forced and api.engine.asked[-1][0]["max_completion_tokens"] == api.config.serve.max_output_tokens
    assert row(api, api.chat(max_tokens=7)).params == {"max_tokens": 7}


@pytest.mark.parametrize(
    "raw",
    [
        r'{"messages":[{"role":"user","content":"half \ud83d"}]}',
        r'{"messages":[{"role":"user","content":[{"type":"text","text":"\udc00 half"}]}]}',
        r'{"messages":[{"role":"user","content":"a\u0000b"}]}',
        r'{"messages":[{"role":"user","content":"Hi","name":"\ud83d"}]}',
        r'{"messages":[{"role":"user","content":"Hi"}],"user":"\ud83d"}',
        r'{"messages":[{"role":"user","content":"Hi"}],"user":"a\u0000"}',
        r'{"messages":[{"role":"user","content":"Hi"}],"stop":["\u0000"]}',
        r'{"messages":[{"role":"user","content":"Hi"}],"model":"\ud83d"}',
        r'{"messages":[{"role":"user","content":"Hi"}],"temperature":NaN}',
        r'{"messages":[{"role":"user","content":"Hi"}],"temperature":1e999}',
        r'{"messages":[{"role":"user","content":"Hi"}],"seed":1e400}',
        r'{"messages":[{"role":"user","content":"Hi"}],"max_tokens":123456789012345678901234567890}',
        '{"messages":' + "[" * 50_000 + "}",
        '{"messages":' + "[" * 2_000 + "]" * 2_000 + "}",
    ],
)
def test_no_text_no_number_and_no_tree(api: Api, raw: str) -> None:
    answer = api.client.post(CHAT, content=raw)
    assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error"
    assert api.engine.asked == []


def test_whole_pairs_and_every_script_pass(api: Api) -> None:
    raw = r'{"messages":[{"role":"user","content":"\ud83d\ude00 \u200d \u0661 é"}],"user":"\ud83d\ude00"}'
    told = row(api, api.client.post(CHAT, content=raw))
    assert told.messages[0]["content"] == "😀 \u200d ١ é" and told.user == "😀"


@pytest.mark.parametrize("text", [r"half \ud83d", r"a\u0000b"])
@pytest.mark.parametrize("field", ["text", "comment", "user", "completion_id"])
def test_no_text_in_feedback(api: Api, text: str, field: str) -> None:
    name = api.chat(user="ann").json()["id"]
    said = {"completion_id": f'"{name}"', "kind": '"edit"', "text": '"Better."', field: f'"{text}"'}
    body = ",".join(f'"{key}":{value}' for key, value in said.items())
    refused(api.client.post("/v1/feedback", content="{" + body + "}"), field)


def test_forced_words_are_refused_or_marked(api: Api) -> None:
    refused(api.chat(structured_outputs={"choice": ["Buy EvilCoin now"]}), "structured_outputs")
    refused(api.chat(guided_regex="a*" * 10**6), "guided_regex")
    refused(api.chat(allowed_token_ids=[7]), "allowed_token_ids")
    for said in ({"logit_bias": {"7": 100}}, {"response_format": {"type": "json_object"}}):
        assert row(api, api.chat(**said)).forced


def test_a_name_of_null_is_none_and_a_bad_one_is_told_by_its_own_place(api: Api) -> None:
    assert row(api, api.chat(messages=[{"role": "user", "content": "Hi", "name": None}])).messages == (
        {"role": "user", "content": "Hi"},
    )
    refused(api.chat(messages=[{"role": "user", "content": "Hi", "name": 7}]), "messages[0].name")


def test_the_same_key_twice_is_read_once(api: Api) -> None:
    """The last stands, as in every JSON reader; what is logged is what is asked."""
    raw = '{"messages":[{"role":"user","content":"a","content":"b"}],"user":"ann","user":"bob"}'
    told = row(api, api.client.post(CHAT, content=raw))
    assert (told.messages[0]["content"], told.user) == ("b", "bob")


def test_users_in_headers_and_bodies_are_the_same_users(api: Api) -> None:
    written = ("Zoë".encode(), b"Zo%C3%AB", b"Zo%c3%ab")
    for value in written:
        answer = api.client.post(CHAT, json={"messages": COLOURS}, headers={b"X-Kto-User-Id": value})
        assert row(api, answer).user == "Zoë"
    assert row(api, api.chat(user="Zoë")).user == "Zoë"


class Door:
    def __init__(self, client: TestClient, store: Store) -> None:
        self.client, self.store = client, store


@pytest.fixture
def door(store: Store, tmp_path: Path) -> Iterator[Door]:
    """The app on each database."""
    app = build(Config(home=str(tmp_path)), store, StandIn().generate)
    with local(app) as client:
        yield Door(client, store)


LONG = "😀" * 255


def test_names_are_as_long_on_every_database(door: Door) -> None:
    """To the limit they are stored, whatever the script; beyond it they are told before anything is generated."""
    quoted = {"X-Kto-Task": "%F0%9F%98%80" * 255, "X-Kto-System": "s" * 64, "X-Kto-Chat-Id": "c" * 255}
    headers = {**quoted, "X-Kto-Message-Id": "m" * 255}
    told = door.client.post(CHAT, json={"messages": COLOURS, "user": LONG}, headers=headers)
    assert told.status_code == 200
    with door.store.read() as tx:
        kept = completions.get(tx, told.json()["id"])
    assert kept is not None and (kept.user, kept.task) == (LONG, LONG)
    assert kept.external == ExternalRef("s" * 64, "c" * 255, "m" * 255)
    thumb = {"external": {"system": "s" * 64, "conversation": "c" * 255, "message": "m" * 255}, "kind": "thumb"}
    given = {**thumb, "value": True, "user": LONG, "reason_codes": [LONG], "tags": {"a": LONG}}
    answer = door.client.post("/v1/feedback", json=given, headers={"Idempotency-Key": "k" * 255})
    assert answer.status_code == 201 and answer.json()["completion_id"] == told.json()["id"]


@pytest.mark.parametrize("query", ["user=a%00b", "why=burst&user=%00", "%00user=ann", "other=%00"])
def test_a_nul_in_a_query_is_told_by_its_name_on_every_database(door: Door, query: str) -> None:
    error = door.client.get(f"/v1/feedback/held?{query}")
    assert error.status_code == 400 and "NUL" in error.json()["error"]["message"]
    assert error.json()["error"]["param"] in ("user", "\\0user", "other")
    assert door.client.get("/v1/feedback/held?user=a%2500b").status_code == 200


@pytest.mark.parametrize("name", ["X-Kto-User-Id", "X-Kto-Task", "X-Kto-System", "X-Kto-Chat-Id", "X-Kto-Message-Id"])
def test_a_long_header_is_told_by_its_name(api: Api, name: str) -> None:
    others = {"X-Kto-Chat-Id": "c", "X-Kto-Message-Id": "m"}
    answer = api.client.post(CHAT, json={"messages": COLOURS}, headers={**others, name: "x" * 300})
    refused(answer, name)
    assert api.engine.asked == []


def test_a_long_user_is_told_alike_everywhere(api: Api) -> None:
    for answer in (
        api.chat(user=LONG + "u"),
        api.chat(safety_identifier=LONG + "u"),
        api.client.post("/v1/responses", json={"input": "Hi", "user": LONG + "u"}),
        api.say("c1", user=LONG + "u"),
    ):
        message = answer.json()["error"]["message"]
        assert answer.status_code == 400 and "255" in message
    refused(api.say("c1", key="k" * 256), "Idempotency-Key")
    assert api.engine.asked == []
