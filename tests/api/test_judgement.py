"""Whose judgement counts, over HTTP: what the receipt says, keys of their sender, tokens, signals, conversations, and
what is held."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from kto_ray.feedback.tokens import HEADER, Claim, sign
from kto_ray.serve.gateway.whose import token_headers
from kto_ray.store import adapters, completions, snapshots
from tests.api.conftest import Api
from tests.support.provenance import adapter, seal
from tests.support.rows import completion


def labels(api: Api, name: str) -> list[tuple[str, str]]:
    found = api.client.get(f"/v1/completions/{name}").json()["labels"]
    return [(label["user"], label["verdict"]) for label in found]


def loop(api: Api) -> Any:
    return api.client.get("/v1/loop").json()


def stored(api: Api, name: str = "c1", **changes: Any) -> str:
    with api.store.write() as tx:
        completions.insert(tx, completion(name, **changes))
    return name


def test_an_edit_that_changes_nothing_is_taken_and_no_label_anywhere(api: Api) -> None:
    """H18"""
    name = api.chat(user="ann").json()["id"]
    for text in ("The sky is blue.", "The sky is blue.\r\n", "\ufeffThe sky\u200b is blue."):
        told = api.say(name, kind="edit", value=None, text=text, user="ann")
        assert (told.status_code, told.json()["label"]) == (201, None) and "changes nothing" in told.json()["why"]
    assert labels(api, name) == [] and loop(api)["labels"] == {"desirable": 0, "undesirable": 0, "new": 0}


@pytest.mark.parametrize("change", [{"status": "aborted"}, {"text": ""}])
def test_the_receipt_of_a_thumb_on_a_stopped_or_empty_answer_says_that_it_will_not_train(api: Api, change: Any) -> None:
    """H19"""
    told = api.say(stored(api, **change), value=False, user="ann")
    assert told.status_code == 201 and told.json()["label"] is None and "the answer is" in told.json()["why"]
    assert loop(api)["labels"]["new"] == 0
    good = api.say(stored(api, "good"), value=False, user="ann").json()
    assert (good["label"], good["why"]) == ("down", None)


def test_a_completion_says_which_adapters_learnt_from_it(api: Api, tmp_path: Path) -> None:
    name = stored(api)
    api.say(name, user="ann")
    manifest, uri = seal(tmp_path, {"train": [(name, "ann")], "holdout": []}, 1)
    with api.store.write() as tx:
        snapshots.insert(tx, manifest, uri)
        adapters.insert(tx, adapter(1, manifest.id, None))
    shown = f"/v1/completions/{name}"
    assert api.client.get(shown).json()["trained"] == ["policy@v1-aaaaaa"]
    (Path(uri) / "manifest.json").write_text("{}")
    told = api.client.get(shown)
    assert (told.status_code, told.json()["trained"]) == (200, None), "its snapshot cannot be read"


def test_what_was_withdrawn_is_no_duplicate(api: Api) -> None:
    """H20"""
    name = stored(api)
    first = api.say(name, "click-17", user="ann").json()["feedback_id"]
    assert api.client.delete(f"/v1/feedback/{first}").status_code == 200
    again = api.say(name, "click-17", user="ann")
    assert (again.status_code, again.json()["status"]) == (201, "recorded") and again.json()["feedback_id"] != first
    assert labels(api, name) == [("ann", "up")]


@pytest.mark.parametrize("body", [{"user": "mallory"}, {"user": "mallory", "value": False}])
def test_a_key_is_of_who_sent_it(api: Api, body: Any) -> None:
    """H21"""
    name = stored(api)
    theirs = api.say(name, "click-17", **body)
    mine = api.say(name, "click-17", user="ann")
    assert (theirs.status_code, mine.status_code) == (201, 201)
    assert theirs.json()["feedback_id"] != mine.json()["feedback_id"]
    assert theirs.json()["why"] == "it is not of the user who received the answer"
    assert labels(api, name) == [("ann", "up")] and loop(api)["feedback"]["strangers"] == 1


def test_who_names_nobody_meets_no_key_of_others(api: Api) -> None:
    one, other = stored(api, "c1", user=None), stored(api, "c2", user=None)
    assert [api.say(name, "k", value=up).status_code for name, up in ((one, True), (other, False))] == [201, 201]
    assert labels(api, one) == [("anonymous", "up")] and labels(api, other) == [("anonymous", "down")]
    assert api.say(one, "k", value=False).status_code == 409


def by_token(api: Api, token: str, **body: Any) -> Any:
    told = {"kind": "thumb", "value": True, **body}
    return api.client.post("/v1/feedback", json=told, headers={HEADER: token})


def test_a_browser_judges_by_the_token_that_the_answer_carried(api: Api) -> None:
    stored(api, user="app/ann", principal="app")
    token = token_headers(api.config, "c1", "app/ann", "app")[HEADER]
    told = by_token(api, token)
    assert (told.status_code, told.json()["completion_id"], told.json()["label"]) == (201, "c1", "up")
    assert by_token(api, token, completion_id="c1", value=False).status_code == 201
    assert labels(api, "c1") == [("app/ann", "down")]


@pytest.mark.parametrize(
    ("user", "principal", "said"),
    [
        ("app/ann", "app", {"user": "ann", "completion_id": "c1"}),
        ("app/ann", "app", {"user": "app/ann", "external": {}}),
        ("app/ann", "app", {"user": "", "external": None, "completion_id": None}),
        ("app", "app", {"user": "ann"}),
        ("proxy/ann", "proxy/ann", {"user": "ann"}),
        (None, "app", {"user": ""}),
        ("ann", None, {"user": "ann"}),
    ],
)
def test_a_page_may_send_the_body_that_its_application_would(
    api: Api, user: str | None, principal: str | None, said: dict[str, Any]
) -> None:
    stored(api, user=user, principal=principal)
    told = by_token(api, token_headers(api.config, "c1", user, principal)[HEADER], **said)
    assert (told.status_code, told.json().get("label")) == (201, "up"), told.text
    assert labels(api, "c1") == [(user or "anonymous", "up")]


@pytest.mark.parametrize(
    ("user", "principal", "said"),
    [
        ("app/ann", "app", {"user": "bob"}),
        ("app/ann", "app", {"user": "other/ann"}),
        ("app/ann", "app", {"user": 7}),
        ("app/ann", "app", {"user": ["ann"]}),
        ("None/ann", None, {"user": "ann"}),
        (None, "app", {"user": "ann"}),
        ("app/ann", "app", {"completion_id": ""}),
        ("app/ann", "app", {"external": []}),
    ],
)
def test_a_page_names_nobody_else(api: Api, user: str | None, principal: str | None, said: dict[str, Any]) -> None:
    stored(api, user=user, principal=principal)
    told = by_token(api, token_headers(api.config, "c1", user, principal)[HEADER], **said)
    assert (told.status_code, told.json()["error"]["code"]) == (403, "not_of_this_token")


def test_a_token_speaks_of_its_answer_alone_and_is_over_at_last(api: Api) -> None:
    stored(api)
    stored(api, "c2")
    claim = Claim("c1", "ann", None, time.time() + 60)
    token = sign(api.config.salt, claim)
    others: list[Any] = [{"completion_id": "c2"}, {"user": "bob"}, {"external": {"conversation": "k", "message": "m"}}]
    for body in others:
        told = by_token(api, token, **body)
        assert (told.status_code, told.json()["error"]["code"]) == (403, "not_of_this_token")
    over = sign(api.config.salt, Claim("c1", "ann", None, time.time() - 1))
    for bad in (over, token[:-1], sign("another salt", claim)):
        told = by_token(api, bad)
        assert (told.status_code, told.json()["error"]["param"]) == (401, HEADER)
    assert labels(api, "c1") == labels(api, "c2") == []


def test_what_is_said_of_an_erased_answer_brings_nobody_back(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Feedback without its answer waits for it, with its user's name; of one that was erased it would wait for ever."""
    carried_at = time.time() - 61
    old = sign(api.config.salt, Claim("c1", "ann", None, carried_at + api.config.feedback.token_hours * 3600))
    young = token_headers(api.config, "c1", "ann", None)[HEADER]
    assert by_token(api, young).status_code == 202, "its row may be on its way"
    with monkeypatch.context() as patch:
        patch.setattr(type(api.door.writer), "spooled", 1)
        assert by_token(api, old).status_code == 202, "it may be in the spool"
    with monkeypatch.context() as patch:
        patch.setattr(api.door, "read", unreachable)
        assert by_token(api, old).status_code == 202, "the store may have it"
    assert api.say("c1", user="ann").status_code == 202, "others may know an answer before the store does"
    gone = by_token(api, old, value=False)
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "completion_gone")
    assert loop(api)["feedback"]["stored"] == 4
    stored(api)
    assert by_token(api, old, value=False).status_code == 201


async def unreachable(_: Any) -> Any:
    raise sa.exc.OperationalError("SELECT 1", None, Exception("away"))


def test_a_signal_is_an_event_and_no_label(api: Api) -> None:
    name = stored(api)
    told = api.say(name, kind="signal", signal="regenerated", value=None, user="ann")
    assert told.status_code == 201 and told.json()["label"] is None and "feedback.signals" in told.json()["why"]
    assert api.say(name, kind="signal", signal="regenerated", value=True, user="ann").json()["label"] is None
    assert api.say(name, kind="signal", signal="winked", value=None).status_code == 400
    assert api.say(name, kind="thumb", signal="copied").status_code == 400
    assert labels(api, name) == []


def test_a_conversation_is_judged_by_its_last_turn(api: Api) -> None:
    names = []
    for turn in ("1", "2"):
        headers = {"X-Kto-Chat-Id": "k", "X-Kto-Message-Id": turn}
        ask = {"messages": [{"role": "user", "content": "Hi"}], "user": "ann"}
        names.append(api.client.post("/v1/chat/completions", json=ask, headers=headers).json()["id"])
    body: Any = {"external": {"conversation": "k"}, "kind": "thumb", "value": True, "user": "ann"}
    told = api.client.post("/v1/feedback", json=body)
    assert (told.status_code, told.json()["completion_id"]) == (201, names[1])
    assert [labels(api, name) for name in names] == [[], [("ann", "up")]]
    edit = api.client.post("/v1/feedback", json={**body, "kind": "edit", "value": None, "text": "Better."})
    assert edit.status_code == 400 and "one answer" in edit.json()["error"]["message"]


def test_what_is_too_much_or_too_long_is_told(api: Api) -> None:
    name, rules = stored(api), api.config.feedback
    long = api.say(name, kind="edit", value=None, text="x" * (rules.max_text + 1), user="ann")
    assert (long.status_code, long.json()["error"]["param"]) == (400, "text")
    for _ in range(rules.max_events):
        assert api.say(name, user="ann").status_code == 201
    more = api.say(name, user="ann")
    assert (more.status_code, more.json()["error"]["code"]) == (429, "too_many_events")


def test_what_is_held_is_shown_and_released_or_dropped(api: Api) -> None:
    given = []
    for i in range(api.config.feedback.burst_events + 2):
        given.append(api.say(stored(api, f"c{i}"), user="ann").json())
    first, second = given[-2:]
    assert first["label"] is None and "held (burst)" in first["why"]
    assert loop(api)["feedback"]["held"] == 2 and loop(api)["feedback"]["held_why"] == {"burst": 2}
    page = api.client.get("/v1/feedback/held", params={"why": "burst", "user": "ann"}).json()
    assert [event["id"] for event in page["events"]] == [first["feedback_id"], second["feedback_id"]]
    told = api.client.post(f"/v1/feedback/{first['feedback_id']}/release")
    assert told.json() == {"feedback_id": first["feedback_id"], "held": "released"}
    assert api.client.post(f"/v1/feedback/{second['feedback_id']}/drop").json()["held"] == "dropped"
    assert api.client.post(f"/v1/feedback/{given[0]['feedback_id']}/drop").status_code == 409
    assert loop(api)["feedback"]["held"] == 0 and loop(api)["labels"]["desirable"] == len(given) - 1
