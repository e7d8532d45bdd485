"""Names in headers: UTF-8 or percent-encoded, decoded once, within the limits of bodies."""

from __future__ import annotations

import pytest

from kto_ray.serve.gateway.bodies.headers import LIMITS, SYSTEM, TASK, USER, header
from kto_ray.serve.gateway.errors import ApiError


def sent(name: str, value: bytes) -> str | None:
    """As an ASGI server hands it over: a character a byte."""
    return header({name.lower(): value.decode("latin-1")}, name)


def test_both_ways_of_writing_name_the_same_user() -> None:
    assert sent(USER, "Zoë".encode()) == sent(USER, b"Zo%C3%AB") == sent(USER, b"Zo%c3%ab") == "Zoë"
    assert sent(USER, b"a%2541") == "a%41", "decoded once"
    assert sent(USER, b"100% sure+so") == "100% sure+so"
    assert sent(USER, b"") is None and header({}, USER) is None


@pytest.mark.parametrize("name", LIMITS)
def test_each_has_its_limit_in_characters(name: str) -> None:
    assert sent(name, "é".encode() * LIMITS[name]) == "é" * LIMITS[name]
    with pytest.raises(ApiError, match=f"{name} must have at most {LIMITS[name]}") as error:
        sent(name, b"u" * (LIMITS[name] + 1))
    assert error.value.status == 400 and error.value.param == name


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (USER, b"Zo\xeb", "UTF-8"),  # latin-1: one byte could be another's name
        (TASK, b"%ff", "UTF-8"),
        (USER, b"%ED%A0%80", "UTF-8"),  # a surrogate
        (SYSTEM, b"a%00", "NUL"),
    ],
)
def test_what_is_no_text_is_told_by_its_header(name: str, value: bytes, words: str) -> None:
    with pytest.raises(ApiError, match=words) as error:
        sent(name, value)
    assert error.value.param == name
