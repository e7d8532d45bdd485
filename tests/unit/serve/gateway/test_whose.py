"""Whose an event is, by who sends it: never another principal's, and a key's owner is its sender."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kto_ray.config import Config
from kto_ray.feedback.tokens import Claim
from kto_ray.records.completions import ExternalRef
from kto_ray.records.feedback import FeedbackKind, Signal
from kto_ray.records.keys import HERE, Principal, Scope
from kto_ray.serve.gateway.whose import may_withdraw, signed
from tests.support.rows import thumb

FEEDBACK = frozenset({Scope.FEEDBACK})
APP, ALONE = Principal("app", FEEDBACK, vouches=True), Principal("alone", FEEDBACK)
JUDGE = Principal("judge", frozenset({Scope.REVIEWER}))
SAID = thumb("f1")


@pytest.mark.parametrize(
    ("principal", "claimed", "expected"),
    [
        (HERE, "ann", (None, "ann", False, "/ann")),
        (HERE, None, (None, None, False, "//c1")),
        (APP, "ann", ("app", "app/ann", False, "app/app/ann")),
        (APP, None, ("app", None, False, "app//c1")),
        (ALONE, "app/ann", ("alone", "alone", False, "alone/alone")),
        (JUDGE, "ann", ("judge", "judge", True, "judge/judge")),
    ],
)
def test_an_event_is_of_its_principals_user(principal: Principal, claimed: str | None, expected: Any) -> None:
    event = signed(Config(), replace(SAID, user=claimed), principal, None)
    assert (event.principal, event.user, event.reviewer, event.key_owner) == expected


def test_a_token_speaks_as_its_user_whoever_sends_it() -> None:
    event = signed(Config(), SAID, JUDGE, Claim("c1", "app/ann", "app", 1.0))
    assert (event.principal, event.user, event.reviewer, event.key_owner) == ("app", "app/ann", False, "app/app/ann")


def test_the_longest_names_fit_the_column_of_owners() -> None:
    ref = ExternalRef("ui", "k" * 255, "m" * 255)
    event = signed(Config(), replace(SAID, user=None, completion_id=None, external=ref), APP, None)
    assert len(event.key_owner) == 511


@pytest.mark.parametrize(("means", "value"), [({}, None), ({"copied": "up"}, True), ({"copied": "down"}, False)])
def test_the_config_says_what_a_signal_comes_to(means: dict[str, str], value: bool | None) -> None:
    config = Config.model_validate({"feedback": {"signals": means}})
    said = replace(SAID, kind=FeedbackKind.SIGNAL, signal=Signal.COPIED, value=None)
    assert signed(config, said, HERE, None).value is value


def test_only_its_sender_or_an_operator_withdraws() -> None:
    event = replace(SAID, principal="app", user="app/ann")
    assert may_withdraw(APP, event) and may_withdraw(replace(JUDGE, scopes=frozenset({Scope.ADMIN})), event)
    assert not may_withdraw(JUDGE, event) and not may_withdraw(ALONE, event)
