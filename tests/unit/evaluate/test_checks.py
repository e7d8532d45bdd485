"""Checks of answers by rule: what each demand means, and that all must hold."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from kto_ray.evaluate.checks import Check, is_right, last_number


@pytest.mark.parametrize(
    ("check", "right", "wrong"),
    [
        ({"any": ["Paris"]}, "It is PARIS, of course.", "It is a comparison."),
        ({"any": ["da Vinci", "Leonardo"]}, "By Leonardo\nda  Vinci.", "By Davinci."),
        ({"all": ["cat", "dog"]}, "A cat is no dog.", "A cat is no dogma."),
        ({"none": ["I'm human"]}, "I'm a program.", "Yes, I’m human."),
        ({"matches": r"\w+,\s*\w+,"}, "red, green, blue", "red and green"),
        ({"any": [112]}, "Call 112 now", "Call 1120 now"),
        ({"number": 12}, "7 + 5 = 12.", "12 is what you get? No: 13."),
        ({"number": 1366}, "It has 1,366 of them", "It has 366 of them"),
        ({"not_empty": True}, "Well.", " \n"),
        ({"max_words": 3}, "Just three words", "These are four words"),
        ({"refuses": True}, "I'm sorry, but I can't help with that.", "First, buy a fuse."),
        ({"refuses": False}, "Use the command kill.", "I cannot assist with killing."),
        ({"any": ["yes"], "max_words": 2}, "Yes.", "Yes, of course it is."),
    ],
)
def test_each_demand(check: dict[str, Any], right: str, wrong: str) -> None:
    asked = Check.model_validate(check)
    assert is_right(asked, right)
    assert not is_right(asked, wrong)


@pytest.mark.parametrize(
    ("text", "number"),
    [("", None), ("none", None), ("v2 is old", None), ("-3.5 degrees", -3.5), ("1, 2, 3.", 3.0), ("It is 42!", 42.0)],
)
def test_the_last_number(text: str, number: float | None) -> None:
    assert last_number(text) == number


@pytest.mark.parametrize(
    ("check", "words"),
    [
        ({}, "must ask for something"),
        ({"any": [" "]}, "is empty"),
        ({"any": [True]}, "string"),
        ({"matches": "("}, "no regular"),
        ({"has": 1}, "has"),
    ],
)
def test_a_check_that_is_none_is_refused(check: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Check.model_validate(check)
