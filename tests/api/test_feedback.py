"""Feedback: durable when acknowledged, once a key, joined to its completion, and read back."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.conftest import Api


def test_a_thumb_is_recorded_once_a_key(api: Api) -> None:
    name = api.chat(user="ann").json()["id"]
    first, again = api.say(name, "k", user="ann"), api.say(name, "k", user="ann")
    assert (first.status_code, first.json()["status"]) == (201, "recorded")
    assert (again.status_code, again.json()["status"]) == (200, "duplicate")
    assert first.json()["feedback_id"] == again.json()["feedback_id"]
    other = api.say(name, "k", user="ann", value=False)
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_key_reused")
    told = api.client.get(f"/v1/completions/{name}").json()
    assert [event["id"] for event in told["feedback"]] == [first.json()["feedback_id"]]
    assert [(label["user"], label["verdict"]) for label in told["labels"]] == [("ann", "up")]


def test_a_thumb_before_its_completion_waits(api: Api) -> None:
    body = {"external": {"conversation": "k", "message": "m"}, "kind": "thumb", "value": False, "user": "ann"}
    early = api.client.post("/v1/feedback", json=body)
    assert (early.status_code, early.json()["status"]) == (202, "pending")
    told = api.client.get("/v1/loop").json()["feedback"]
    assert (told["stored"], told["pending"], told["withdrawn"], told["held"]) == (1, 1, 0, 0)
    headers = {"X-Kto-Chat-Id": "k", "X-Kto-Message-Id": "m"}
    messages = [{"role": "user", "content": "Hi"}]
    api.client.post("/v1/chat/completions", json={"messages": messages, "user": "ann"}, headers=headers)
    told = api.client.get("/v1/loop").json()
    assert told["feedback"]["pending"] == 0 and told["labels"] == {"desirable": 0, "undesirable": 1, "new": 1}


def test_withdrawn_feedback_labels_nothing(api: Api) -> None:
    name = api.chat(user="ann").json()["id"]
    given = api.say(name, user="ann").json()["feedback_id"]
    assert api.client.delete(f"/v1/feedback/{given}").json() == {"feedback_id": given, "status": "withdrawn"}
    assert api.client.get(f"/v1/completions/{name}").json()["labels"] == []
    assert api.client.delete("/v1/feedback/fb-none").status_code == 404


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "star"}, "thumb, edit, comment, signal"),
        ({"value": None}, "a thumb needs value"),
        ({"kind": "edit", "text": " "}, "an edit needs text"),
        ({"kind": "comment"}, "a comment needs comment"),
        ({"external": {"conversation": "k", "message": "m"}}, "either completion_id or external"),
        ({"stars": 5}, "stars"),
    ],
)
def test_bad_feedback_is_told(api: Api, change: dict[str, Any], words: str) -> None:
    answer = api.say("c1", **change)
    assert answer.status_code == 400 and words in answer.json()["error"]["message"]


def test_what_is_not_there_is_told(api: Api) -> None:
    for path in ("/v1/completions/none", "/v1/lineage/nobody", "/v1/loop/rounds/7", "/nowhere"):
        answer = api.client.get(path)
        assert answer.status_code == 404 and answer.json()["error"]["type"] == "invalid_request_error", path
    assert api.client.get("/v1/feedback").status_code == 405
    assert api.client.get("/v1/loop/rounds/x").json()["error"]["param"] == "number"


def test_lineage_follows_a_thumb(api: Api) -> None:
    name = api.chat(user="ann").json()["id"]
    given = api.say(name, user="ann").json()["feedback_id"]
    assert api.client.get(f"/v1/lineage/{name}").json()["feedback"] == [given]
    assert api.client.get("/v1/lineage/ann").json()["completions"] == [name]
