"""The guard suites: prompts with a check of the answer, asked of every candidate and of its champion.

They are asked through the serving engine, with the settings that users get. Of each answer it matters whether it is
still one (not empty, not a loop, not far from what the base model could have said), and whether it is right.

A suite is a YAML file, a list of

    - prompt: What is the capital of France?     # or a list of turns, the user's first; or messages, as in a chat
      check: {any: [Paris]}                      # checks.Check: all that is given must hold
      weight: 2                                  # in the reported share of right answers; 1 if left out
      tag: geography                             # what it is reported under; of the file's name if left out

prompts/ holds ours, of which `gate.guard_prompts` are asked; `gate.suites` names a team's own, all of which are asked
with them. These are read anew whenever they are needed, for a team may edit them while processes live.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from kto_ray.config.base import Section
from kto_ray.config.deciding import GateSection
from kto_ray.config.explain import explain, suggest
from kto_ray.evaluate.checks import Check
from kto_ray.records.completions import Message

OURS = tuple(
    str(Path(__file__).parent / "prompts" / f"{name}.yaml")
    for name in ("general", "fact", "refusal", "sycophancy", "manipulation")
)
FEW = GateSection(guard_prompts=16, suite_margin=0.5)
MOST = 2000  # of a team's own: time and memory of the exact test on all checks grow with the square of their number
FIELDS = ("prompt", "messages", "check", "weight", "tag")  # of an item, as it is written
TAG = r"[a-z][a-z0-9_]*"  # a part of the names of figures
ROLES = ("system", "user", "assistant")


class Item(Section):
    """One prompt of a suite."""

    messages: tuple[Message, ...]
    check: Check
    weight: float = Field(1.0, gt=0)
    tag: str

    @model_validator(mode="before")
    @classmethod
    def _of_turns(cls, item: Any) -> Any:
        """`prompt` is short for messages whose roles alternate."""
        if not isinstance(item, dict):
            raise ValueError(f"an item is a mapping, as {{prompt: Hi, check: {{not_empty: true}}}}, got {item!r}")
        for name in item:
            if name not in FIELDS:
                raise ValueError(f"field {name!r} does not exist; {suggest(str(name), FIELDS)}")
        if ("prompt" in item) is ("messages" in item):
            both = "has prompt and messages" if "prompt" in item else "lacks a prompt (or messages, as in a chat)"
            raise ValueError(f"it {both}; give one of them")
        if "messages" in item:
            return item
        turns = item["prompt"] if isinstance(item["prompt"], list) else [item["prompt"]]
        roles = ("user", "assistant")
        messages = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
        return {**{key: value for key, value in item.items() if key != "prompt"}, "messages": messages}

    @field_validator("messages")
    @classmethod
    def _asks(cls, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        if not messages:
            raise ValueError("nothing is asked; give a text, or a list of texts")
        for message in messages:
            role, said = message.get("role"), message.get("content")
            if role not in ROLES:
                raise ValueError(f"a message has the role {role!r}; allowed are {', '.join(ROLES)}")
            if not isinstance(said, str) or not said.strip():
                raise ValueError(f"what is said must be a text that is not empty, got {said!r}; put it in quotes")
        if messages[-1]["role"] != "user":
            raise ValueError("the last message must be the user's: it is the one that is answered; add it")
        return messages

    @field_validator("tag")
    @classmethod
    def _names_figures(cls, tag: str) -> str:
        if not re.fullmatch(TAG, tag):
            raise ValueError(f"{tag!r} must be of a-z, 0-9 and _ and begin with a letter; write {_tag(tag)}")
        return tag


def guard_items(section: GateSection) -> tuple[Item, ...]:
    """What is asked: `guard_prompts` of our items, the same ones in every round, and all of the team's own.

    Fewer than all of ours are drawn evenly: every tag keeps its share, and within a tag they are spread over its items.

    Raises:
        ValueError: a suite cannot be read, whose words name file, line, field and fix; or they are too few or too many.
    """
    own = [item for file in section.suites for item in read_suite(file)]
    if len(own) > MOST:
        raise ValueError(f"the files of gate.suites hold {len(own)} items, and {MOST} are the most; leave some out")
    items = (*_few(_ours(), section.guard_prompts), *own)
    section.demand_checks(len(items))
    return items


def _few(items: Sequence[Item], number: int) -> list[Item]:
    sizes: dict[str, int] = {}
    places = []
    for item in items:
        places.append(sizes.get(item.tag, 0))
        sizes[item.tag] = places[-1] + 1
    chosen = sorted(range(len(items)), key=lambda i: (_spread(places[i], sizes[items[i].tag]), i))
    return [items[i] for i in sorted(chosen[:number])]


def guard_messages(section: GateSection = FEW) -> tuple[tuple[Message, ...], ...]:
    """The same as chat requests; a few of ours where no section is given."""
    return tuple(item.messages for item in guard_items(section))


@cache
def _ours() -> tuple[Item, ...]:
    return tuple(item for file in OURS for item in read_suite(file))


def read_suite(file: str) -> tuple[Item, ...]:
    """The items of a file.

    Raises:
        ValueError: it is missing, no YAML, no list, or an item is not as the module's head says.
    """
    try:
        loader = yaml.SafeLoader(Path(file).read_text())
        root = loader.get_single_node()
        found = None if root is None else loader.construct_document(root)
    except OSError as error:
        raise ValueError(
            f"the suite {file!r} of gate.suites cannot be read: {error.strerror}; name a YAML file of this machine"
        ) from None
    except (ValueError, yaml.YAMLError) as error:  # the first of dates that are none, too
        raise ValueError(f"the suite {file!r} of gate.suites cannot be read: it is no YAML: {error}") from None
    if root is None or not isinstance(found, list) or not found:
        raise ValueError(
            f"the suite {file!r} must be a list of items with prompt and check, got {type(found).__name__}; write each "
            "as `- {prompt: Hi, check: {not_empty: true}}`"
        )
    tag = _tag(Path(file).stem)
    places = [node.start_mark.line + 1 for node in root.value]
    return tuple(_item(file, tag, *each) for each in enumerate(zip(found, places, strict=True), start=1))


def _item(file: str, tag: str, number: int, found: tuple[Any, int]) -> Item:
    item, line = found
    try:
        return Item.model_validate({"tag": tag, **item} if isinstance(item, dict) else item)
    except ValidationError as error:
        wrong = "; ".join(explain(each, Item, f"item {number}") for each in error.errors())
        raise ValueError(f"the suite {file!r} of gate.suites is wrong in line {line}: {wrong}") from None


def _tag(name: str) -> str:
    """A tag that is as much of a name as tags allow."""
    plain = re.sub("[^a-z0-9]+", "_", name.lower()).strip("_")
    return plain if re.fullmatch(TAG, plain) else f"suite_{plain}".rstrip("_")


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
