"""Whether an answer is right, by rule: no model judges. Pure.

A rule cannot read, so it asks for little: a word that a right answer holds, a number, a form. What it gets wrong it
gets wrong of candidate and champion alike, and only the difference decides.
"""

from __future__ import annotations

import re

from pydantic import ConfigDict, Field, field_validator, model_validator

from kto_ray.config.base import Section
from kto_ray.evaluate.features import refuses

NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?")


class Check(Section):
    """What an answer must meet; all that are given hold. Words are whole words or phrases, in any case."""

    model_config = ConfigDict(coerce_numbers_to_str=True)  # YAML reads 112 as a number

    any: tuple[str, ...] = ()  # one of these words
    all: tuple[str, ...] = ()  # each of these
    none: tuple[str, ...] = ()  # not one of these
    matches: str | None = None  # this regular expression, anywhere
    number: float | None = None  # the last number that the answer says
    not_empty: bool = False
    max_words: int | None = Field(None, ge=1)
    refuses: bool | None = None  # whether it declines to do what is asked

    @field_validator("any", "all", "none")
    @classmethod
    def _words(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        if any(not word.strip() for word in words):
            raise ValueError(f"a word to look for is empty in {list(words)}; leave it out")
        return words

    @field_validator("matches")
    @classmethod
    def _pattern(cls, pattern: str | None) -> str | None:
        if pattern == "":
            raise ValueError("matches is empty, which every answer meets; leave it out")
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(
                f"matches is {pattern!r}, no regular expression: {error}; put \\ before a literal sign"
            ) from None
        return pattern

    @model_validator(mode="after")
    def _asks_something(self) -> Check:
        if self == Check.model_construct():
            raise ValueError(
                "a check must ask for something: any, all, none, matches, number, not_empty, max_words, refuses"
            )
        if both := {word.casefold() for word in self.all} & {word.casefold() for word in self.none}:
            raise ValueError(f"all and none both name {min(both)!r}, which no answer meets; take it out of one")
        return self


def is_right(check: Check, answer: str) -> bool:
    """Whether the answer meets all that the check asks."""
    demands = (
        not check.any or any(holds(answer, word) for word in check.any),
        all(holds(answer, word) for word in check.all),
        not any(holds(answer, word) for word in check.none),
        check.matches is None or re.search(check.matches, answer) is not None,
        check.number is None or last_number(answer) == check.number,
        not check.not_empty or bool(answer.strip()),
        check.max_words is None or len(answer.split()) <= check.max_words,
        check.refuses is None or refuses(answer) is check.refuses,
    )
    return all(demands)


def holds(answer: str, word: str) -> bool:
    """Whether the answer holds the word or phrase, as whole words and in any case."""
    pattern = r"\s+".join(re.escape(part) for part in word.replace("’", "'").split())
    return re.search(rf"(?<!\w){pattern}(?!\w)", answer.replace("’", "'"), re.IGNORECASE) is not None


def last_number(answer: str) -> float | None:
    """The last number of the text, None where there is none; commas are those of thousands."""
    found = NUMBER.findall(answer)
    return float(found[-1].replace(",", "")) if found else None
