"""The guard suites: prompts with a check of the answer, asked of every candidate and of its champion.

They are asked through the serving engine, with the settings that users get. Of each answer it matters whether it is
still one (not empty, not a loop, not far from what the base model could have said), and whether it is right.

A suite is a YAML file, a list of

    - prompt: What is the capital of France?     # or a list of turns, the user's first; or messages, as in a chat
      check: {any: [Paris]}                      # checks.Check: all that is given must hold
      weight: 2                                  # in the reported share of right answers; 1 if left out
      tag: geography                             # what it is reported under; the file's name if left out

prompts/ holds ours; `gate.suites` names a team's own, which are asked with them.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, model_validator

from kto_ray.config.base import Section
from kto_ray.config.deciding import GateSection
from kto_ray.evaluate.checks import Check
from kto_ray.records.completions import Message

OURS = tuple(
    str(Path(__file__).parent / "prompts" / f"{name}.yaml")
    for name in ("general", "fact", "refusal", "sycophancy", "manipulation")
)
FEW = GateSection(guard_prompts=16)


class Item(Section):
    """One prompt of a suite."""

    messages: tuple[Message, ...] = Field(min_length=1)
    check: Check
    weight: float = Field(1.0, gt=0)
    tag: str = Field(pattern=r"^[a-z][a-z0-9_]*$")

    @model_validator(mode="before")
    @classmethod
    def _of_turns(cls, item: Any) -> Any:
        """`prompt` is short for messages whose roles alternate."""
        if not isinstance(item, dict) or "prompt" not in item:
            return item
        if "messages" in item:
            raise ValueError("an item has prompt and messages; give one of them")
        turns = item["prompt"] if isinstance(item["prompt"], list) else [item["prompt"]]
        roles = ("user", "assistant")
        messages = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
        return {**{key: value for key, value in item.items() if key != "prompt"}, "messages": messages}

    @model_validator(mode="after")
    def _asks(self) -> Item:
        for message in self.messages:
            if message.get("role") not in ("system", "user", "assistant") or not isinstance(
                message.get("content"), str
            ):
                raise ValueError(
                    f"a message needs a role (system, user, assistant) and a text as content, got {message}"
                )
        if self.messages[-1]["role"] != "user":
            raise ValueError("the last message must be the user's: it is the one that is answered")
        return self


def guard_items(section: GateSection) -> tuple[Item, ...]:
    """What is asked: all items of all suites, or `guard_prompts` of them, the same ones in every round.

    Fewer are drawn evenly: every tag keeps its share, and within a tag they are spread over its items.

    Raises:
        ValueError: a suite cannot be read; the words name file, item and fault.
    """
    items = [item for file in (*OURS, *section.suites) for item in read_suite(file)]
    sizes: dict[str, int] = {}
    places = []
    for item in items:
        places.append(sizes.get(item.tag, 0))
        sizes[item.tag] = places[-1] + 1
    chosen = sorted(range(len(items)), key=lambda i: (_spread(places[i], sizes[items[i].tag]), i))
    return tuple(items[i] for i in sorted(chosen[: section.guard_prompts]))


def guard_messages(section: GateSection = FEW) -> tuple[tuple[Message, ...], ...]:
    """The same as chat requests; a few of ours where no section is given."""
    return tuple(item.messages for item in guard_items(section))


@cache
def read_suite(file: str) -> tuple[Item, ...]:
    """The items of a file.

    Raises:
        ValueError: it is missing, no YAML, no list, or an item is not as the module's head says.
    """
    try:
        found = yaml.safe_load(Path(file).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"the suite {file!r} of gate.suites cannot be read: {error}") from None
    if not isinstance(found, list) or not found:
        raise ValueError(
            f"the suite {file!r} must be a list of items with prompt and check, got {type(found).__name__}"
        )
    items = []
    for number, item in enumerate(found, start=1):
        try:
            items.append(Item.model_validate({"tag": Path(file).stem, **item} if isinstance(item, dict) else item))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ValueError(f"item {number} of the suite {file!r} is wrong: {where} {first['msg']}") from None
    return tuple(items)


def _spread(place: int, size: int) -> float:
    """A number in (0, 1) by which the first n of a tag's items lie evenly over it, whatever n: van der Corput's
    sequence in base 2, ranked."""
    order = sorted(range(size), key=_reversed_bits)
    return (order.index(place) + 0.5) / size


def _reversed_bits(number: int) -> float:
    """0, 1/2, 1/4, 3/4, 1/8, ... of 0, 1, 2, 3, 4, ..."""
    value, unit = 0.0, 0.5
    while number:
        value, unit, number = value + unit * (number & 1), unit / 2, number >> 1
    return value
