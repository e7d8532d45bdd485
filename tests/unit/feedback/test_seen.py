"""Which texts look alike, and which show nothing."""

from __future__ import annotations

import unicodedata

import pytest

from kto_ray.feedback.seen import seen, with_line_feeds


@pytest.mark.parametrize(
    "text",
    [
        "Das Café\nam See",
        "Das Cafe\u0301\nam See",
        "Das Café\r\nam See\r\n",
        "\rDas Café\ram See",
        "\ufeffDas Café\nam See\u200b",
        "Das \u200bCafé\nam\u2060 See\u200d",
        "Das\u200e Café\u200c\nam S\u00adee",
        "\u202aDas Café\nam See\u202c",
        "Das Caf\u200dé\nam Se\u200ce\u200d\u200d",
        "\u00a0Das Café\nam See\u3000",
        "Das Cafe\u200b\u0301\nam See",
    ],
)
def test_what_looks_alike_is_one_text(text: str) -> None:
    assert seen(text) == seen(seen(text)) == "Das Café\nam See"


@pytest.mark.parametrize(
    "text", ["", " \r\n", "\u200b", " \u200d\u200d ", "\ufeff", "\u2060\u00ad", "\u3164", "\U000e0067"]
)
def test_what_shows_nothing_is_empty(text: str) -> None:
    assert seen(text) == ""


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("👩\u200d💻", "👩💻"),
        ("🏴\u200d☠\ufe0f", "🏴☠\ufe0f"),
        ("👁\ufe0f\u200d🗨\ufe0f.", "👁\ufe0f🗨\ufe0f."),
        ("🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f", "🏴"),
        ("می\u200cخواهم", "میخواهم"),
        ("क्\u200dष", "क्ष"),
        ("\u0601123", "123"),
        ("a b", "ab"),
        ("x²", "x2"),
        ("One.", "One"),
    ],
)
def test_what_looks_otherwise_stays_another_text(text: str, other: str) -> None:
    assert seen(text) == unicodedata.normalize("NFC", text) != seen(other)


def test_a_line_ends_alike_whatever_system_it_was_typed_on() -> None:
    assert with_line_feeds("a\r\nb\rc\n\r\nd \u200b") == "a\nb\nc\n\nd \u200b"
