"""Answers of an A/B test that ask for a thumb: a field at their end, whole or streamed, and what came of it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from kto_ray.records.adapters import CHALLENGER, CHAMPION
from kto_ray.records.completions import Completion
from kto_ray.records.rollouts import RolloutState, RolloutStatus
from kto_ray.rollout.ratings import asks
from kto_ray.serve.gateway import answer
from kto_ray.store import adapters, completions, rollouts, trials
from kto_ray.store.trials import Rules
from tests.api.conftest import HI, Api

NEW = "policy@v1-aaaaaa"
TEST = RolloutState("r-1", "policy@base", NEW, "salt", 0, 0.5, RolloutStatus.RUNNING, 1.0, 1.0)
ASK = {"ask": "thumb"}
SHARE = 0.2


@pytest.fixture(autouse=True)
def test_lives(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth of its answers ask; ids that are no luck."""
    with api.store.write() as tx:
        adapters.set_alias(tx, CHAMPION, "policy@base", 1.0)
        adapters.set_alias(tx, CHALLENGER, NEW, 1.0)
        rollouts.put(tx, TEST)
    api.holding(NEW)
    section = api.config.feedback.model_copy(update={"solicit_share": SHARE})
    monkeypatch.setattr(api.door, "config", api.config.model_copy(update={"feedback": section}))
    chance = Random(0)
    ids = SimpleNamespace(uuid4=lambda: uuid.UUID(int=chance.getrandbits(128)))
    monkeypatch.setattr(answer, "uuid", ids)


def row_of(api: Api, name: str) -> Completion:
    with api.store.read() as tx:
        row = completions.get(tx, name)
    assert row is not None
    return row


def chunks_of(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data: "))


def test_a_share_of_whole_answers_asks_and_their_rows_say_so(api: Api) -> None:
    rows = []
    for i in range(40):
        told = api.chat(user=f"u{i}").json()
        row = row_of(api, told["id"])
        assert row.solicited is asks(api.config.salt, row.id, SHARE)
        assert told.get("kto_ray") == (ASK if row.solicited else None)
        rows.append(row)
    assert 2 < sum(row.solicited for row in rows) < 20
    assert {row.arm for row in rows if row.solicited} == {row.arm for row in rows}


def test_a_stream_asks_at_its_end_alone(api: Api) -> None:
    asked = 0
    for i in range(20):
        chunks = [*chunks_of(api.chat(user=f"u{i}", stream=True).text)]
        solicited = row_of(api, chunks[0]["id"]).solicited
        assert ["kto_ray" in one for one in chunks] == [False] * (len(chunks) - 1) + [solicited]
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
        asked += solicited
    assert 0 < asked < 20


def test_responses_ask_too(api: Api) -> None:
    asked = 0
    for i in range(20):
        body = {"input": "Hi", "user": f"u{i}"}
        whole = api.client.post("/v1/responses", json=body).json()
        events = [*chunks_of(api.client.post("/v1/responses", json={**body, "stream": True}).text)]
        for told in (whole, events[-1]["response"]):
            solicited = row_of(api, told["id"]).solicited
            assert told.get("kto_ray") == (ASK if solicited else None)
            asked += solicited
        assert not any("kto_ray" in event.get("response", {}) for event in events[:-1])
    assert 0 < asked < 40


@pytest.mark.parametrize(
    "what", [{"model": NEW}, {"user": None}, {"headers": {"X-Kto-Task": "title"}}, {"temperature": 0, "min_tokens": 1}]
)
def test_what_is_of_no_test_or_judged_by_nobody_asks_nothing(
    api: Api, monkeypatch: pytest.MonkeyPatch, what: dict[str, Any]
) -> None:
    monkeypatch.setattr(answer, "asks", lambda salt, name, share: True)
    assert api.chat(user="ann").json()["kto_ray"] == ASK
    headers = what.pop("headers", {})
    body = {name: value for name, value in {"messages": HI, "user": "ann", **what}.items() if value is not None}
    told = api.client.post("/v1/chat/completions", json=body, headers=headers).json()
    assert "kto_ray" not in told and not row_of(api, told["id"]).solicited


def test_an_answer_that_breaks_off_asks_nobody(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer, "asks", lambda salt, name, share: True)
    api.engine.finish_reason = "abort"
    told = api.chat(user="ann").json()
    row = row_of(api, told["id"])
    assert "kto_ray" not in told and row.status == "failed" and row.solicited, "it was drawn all the same"


def test_what_came_is_shown_by_arm(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer, "asks", lambda salt, name, share: True)
    assert api.client.get("/v1/rollout").json()["rollout"]["ratings"] is None
    for i in range(12):
        told = api.chat(user=f"u{i}").json()
        if i % 2:
            api.say(told["id"], user=f"u{i}", value=told["system_fingerprint"] == NEW)
    with api.store.write() as tx:
        trials.advance(tx, TEST, Rules(0.0, new_users=True, slow_s=10.0, react_s=3600.0), 1e10)
    page = api.client.get("/v1/rollout").json()["rollout"]
    found = page["ratings"]
    assert found["champion"]["asked"] + found["challenger"]["asked"] == 12
    assert found["champion"]["rated"] + found["challenger"]["rated"] == 6
    assert (found["champion"]["up"], found["challenger"]["up"]) == (0, found["challenger"]["rated"])
    assert "who answered" in found["words"]
    assert page["exposed"]["champion"]["observed"] == page["exposed"]["champion"]["known"]
