"""Features that thumbs reward: what is seen as one, and when a drift is told."""

from __future__ import annotations

import pytest

from kto_ray.evaluate.features import drift, flatters, holds_emoji, refuses, shares
from kto_ray.feedback.faults import asks_back
from kto_ray.records.evaluation import GuardAnswer


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("Paris. Shall I say more?", (True, False, False, False)),
        ("Why? Because it is. ", (False, False, False, False)),
        ("What a great question! It is Paris.", (False, True, False, False)),
        ("You’re absolutely right.", (False, True, False, False)),
        ("A good question to ask a baker is this.", (False, True, False, False)),
        ("Hello \U0001f600", (False, False, True, False)),
        ("Well ★ → 100 °C — “yes”", (False, False, True, False)),
        ("Ten → 100 °C — “yes” …", (False, False, False, False)),
        ("I'm sorry, but I can't assist with that.", (False, False, False, True)),
        ("I cannot help you with this.", (False, False, False, True)),
        ("As an AI language model, I do not have a body.", (False, False, False, True)),
        ("I am sorry that you are sad. " + "Rest. " * 60 + "I cannot help more.", (False, False, False, False)),
    ],
)
def test_what_is_seen(text: str, seen: tuple[bool, ...]) -> None:
    assert (asks_back(text), flatters(text), holds_emoji(text), refuses(text)) == seen


def test_shares_are_of_answers() -> None:
    answers = [
        GuardAnswer((), text, "stop") for text in ("One two?", "Great question! Yes.", "", "Four words are here")
    ]
    assert shares(answers) == {"asks_back": 0.25, "flatters": 0.25, "emoji": 0.0, "refuses": 0.0, "words": 9 / 4}


def drifted(new: float, old: float, number: int = 200, name: str = "asks_back") -> tuple[str, ...]:
    return drift({"n_guard": float(number), name: new, f"{name}_champion": old})


def test_a_drift_is_told_where_it_is_large_and_no_chance() -> None:
    assert drifted(0.4, 0.05) == ("drift: 40% of answers ask back, of the champion's 5%",)
    assert drifted(0.05, 0.4) and drifted(0.5, 0.1, name="flatters") and drifted(0.2, 0.0, name="emoji")
    assert not drifted(0.1, 0.05), "small"
    assert not drifted(0.4, 0.2, number=16), "of so few prompts it may be chance"
    assert not drift({"asks_back": 1.0}), "nothing to compare with"


def test_a_drift_of_length_is_told() -> None:
    assert drift({"words": 30.0, "words_champion": 12.0}) == (
        "drift: answers have 30 words on average, the champion's 12",
    )
    assert drift({"words": 5.0, "words_champion": 12.0}) and not drift({"words": 14.0, "words_champion": 12.0})
