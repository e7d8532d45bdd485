"""A feedback event: what is taken, and how a bad one is told."""

from __future__ import annotations

from typing import Any

import pytest

from kto_ray.records.completions import ExternalRef
from kto_ray.records.feedback import FeedbackKind, Signal
from kto_ray.serve.gateway.bodies import limits, parse_feedback
from kto_ray.serve.gateway.errors import ApiError

EXTERNAL = {"conversation": "k", "message": "m"}
KEY = {"idempotency-key": "key"}


def test_feedback_of_each_kind() -> None:
    event = parse_feedback({"completion_id": "c", "kind": "thumb", "value": False, "tags": {"a": 1}}, KEY)
    assert (event.kind, event.value, event.idempotency_key, event.tags) == (FeedbackKind.THUMB, False, "key", {"a": 1})
    external = {"conversation": "k", "message": "m"}
    edit = parse_feedback({"external": external, "kind": "edit", "text": "Better."}, {})
    assert (edit.text, edit.external) == ("Better.", ExternalRef("default", "k", "m"))
    comment = parse_feedback({"completion_id": "c", "kind": "comment", "comment": "hm"}, {})
    assert comment.comment == "hm"


def test_the_body_hash_is_of_the_meaning() -> None:
    one = parse_feedback({"completion_id": "c", "kind": "thumb", "value": True}, {})
    two = parse_feedback({"value": True, "kind": "thumb", "completion_id": "c", "comment": None}, {})
    other = parse_feedback({"completion_id": "c", "kind": "thumb", "value": False}, {})
    assert one.body_hash == two.body_hash != other.body_hash and one.id != two.id


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"kind": "thumb", "value": True}, "completion_id or external"),
        ({"completion_id": "c", "external": EXTERNAL, "kind": "thumb", "value": True}, "either"),
        ({"completion_id": "c", "kind": "thumb"}, "needs value"),
        ({"completion_id": "c", "kind": "thumb", "value": 1}, "value"),
        ({"completion_id": "c", "kind": "stars", "value": True}, "'stars'"),
        ({"completion_id": "c", "kind": "edit", "text": "  "}, "needs text"),
        ({"completion_id": "c", "kind": "edit", "text": "\u200b \ufeff"}, "needs text"),
        ({"completion_id": "c", "kind": "comment"}, "needs comment"),
        ({"completion_id": "c", "kind": "comment", "comment": "\u200b"}, "needs comment"),
        ({"completion_id": "c", "kind": "thumb", "value": True, "valeu": 1}, "valeu"),
        ({"completion_id": "", "kind": "thumb", "value": True}, "completion_id"),
    ],
)
def test_bad_feedback_says_what_is_missing(body: dict[str, Any], told: str) -> None:
    with pytest.raises(ApiError) as error:
        parse_feedback(body, {})
    assert error.value.status == 400 and told in str(error.value)


def test_an_edit_has_line_feeds_and_is_the_same_from_every_system() -> None:
    told = [{"completion_id": "c", "kind": "edit", "text": text} for text in ("a\nb\u200b ", "a\r\nb\u200b ")]
    one, two = (parse_feedback(body, {}) for body in told)
    assert one.text == two.text == "a\nb\u200b " and one.body_hash == two.body_hash


def test_a_long_idempotency_key_is_refused() -> None:
    with pytest.raises(ApiError, match="255"):
        parse_feedback({"completion_id": "c", "kind": "thumb", "value": True}, {"idempotency-key": "k" * 256})


def test_a_signal_is_an_event_of_its_own() -> None:
    event = parse_feedback({"completion_id": "c", "kind": "signal", "signal": "copied"}, {})
    assert (event.kind, event.signal, event.value) == (FeedbackKind.SIGNAL, Signal.COPIED, None)


THUMB = {"completion_id": "c", "kind": "thumb", "value": True}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"completion_id": 7}, "completion_id"),
        ({"completion_id": "c" * 256}, "completion_id"),
        ({"kind": ["thumb"]}, "kind"),
        ({"value": "true"}, "value"),
        ({"value": None}, "value"),
        ({"kind": "stars"}, "kind"),
        ({"kind": "x" * 5_000}, "kind"),
        ({"kind": "edit"}, "text"),
        ({"kind": "edit", "text": " "}, "text"),
        ({"kind": "comment"}, "comment"),
        ({"kind": "signal"}, "signal"),
        ({"signal": "copied"}, "signal"),
        ({"external": EXTERNAL}, "completion_id"),
        ({"completion_id": None}, "completion_id"),
        ({"value": 0}, "value"),
        ({"text": "x" * (limits.TEXT + 1)}, "text"),
        ({"comment": "x" * (limits.COMMENT + 1)}, "comment"),
        ({"user": "u" * 256}, "user"),
        ({"user": 7}, "user"),
        ({"reason_codes": "rude"}, "reason_codes"),
        ({"reason_codes": ["a"] * (limits.REASONS + 1)}, "reason_codes"),
        ({"reason_codes": ["a", 7]}, "reason_codes[1]"),
        ({"tags": []}, "tags"),
        ({"tags": {"a": "x" * limits.TAGS_CHARACTERS}}, "tags"),
        ({"completion_id": None, "external": "m"}, "external"),
        ({"completion_id": None, "external": {"conversation": "k"}, "kind": "edit", "text": "x"}, "external.message"),
        ({"completion_id": None, "external": {**EXTERNAL, "system": "s" * 65}}, "external.system"),
        ({"completion_id": None, "external": {**EXTERNAL, "system": ""}}, "external.system"),
        ({"completion_id": None, "external": {**EXTERNAL, "message": ""}}, "external.message"),
        ({"completion_id": None, "external": {**EXTERNAL, "message": "m" * 256}}, "external.message"),
        ({"completion_id": None, "external": {**EXTERNAL, "thread": "t"}}, "external.thread"),
    ],
)
def test_bad_feedback_names_the_field(change: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as error:
        parse_feedback({**THUMB, **change}, {})
    assert (error.value.status, error.value.param) == (400, param) and len(str(error.value)) < 300


@pytest.mark.parametrize("change", [{"kind": "signal"}, {"kind": "signal", "signal": "stared"}, {"signal": "copied"}])
def test_a_signal_and_nothing_else_says_which(change: dict[str, Any]) -> None:
    with pytest.raises(ApiError, match="signal: one of regenerated"):
        parse_feedback({**THUMB, **change}, {})


def test_nulls_say_nothing() -> None:
    nulls = dict.fromkeys(("external", "text", "comment", "user", "tags", "reason_codes", "signal"))
    event = parse_feedback({**THUMB, **nulls}, {})
    assert (event.tags, event.reason_codes, event.user) == ({}, (), None)
    assert parse_feedback({**THUMB, "user": ""}, {}).user is None


def test_an_empty_idempotency_key_is_told() -> None:
    with pytest.raises(ApiError, match="1 to 255"):
        parse_feedback(THUMB, {"idempotency-key": ""})
