"""A panel of simulated users without a service: what they ask, and what they say of an answer, as training rows."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from kto_ray.config import Config
from kto_ray.config.learning import KtoSection
from kto_ray.people.tastes import (
    Ask,
    Habits,
    Taste,
    ask,
    react,
    users,
)
from kto_ray.records.completions import Message

Row = dict[str, Any]


# Of the panel's benchmarks: the desirable half weighs double and the pull to the base is strong.
RECIPE = {"beta": 0.3, "loss_aversion": 0.5, "learning_rate": 5e-4, "rank": 8, "alpha": 16}


def recipe(config: Config, seed: int) -> Config:
    """The config with the panel's training recipe and a seed."""
    kto = KtoSection.model_validate({**config.kto.model_dump(), **RECIPE})
    data = config.data.model_copy(update={"seed": seed})
    return config.model_copy(update={"kto": kto, "data": data})


def questions(taste: Taste, n: int, name: str) -> list[Ask]:
    """`n` questions of `n` users, decided by `name`."""
    rng = random.Random(f"{taste.name}/{name}")
    return [ask(taste, user, rng) for user in users(n, rng.getrandbits(30))]


def messages(asked: Sequence[Ask]) -> list[list[Message]]:
    return [[{"role": "user", "content": question.prompt}] for question in asked]


def row(question: Ask, answer: str, label: bool) -> Row:
    """A row in TRL's unpaired format."""
    return {
        "prompt": [{"role": "user", "content": question.prompt}],
        "completion": [{"role": "assistant", "content": answer}],
        "label": label,
        "conversation": question.user.id,
    }


def judgements(
    taste: Taste, asked: Sequence[Ask], answers: Sequence[tuple[str, str]], habits: Habits, name: str
) -> list[Row]:
    """What the users teach: a row a thumb, two an edit, none where they say nothing or the answer is empty."""
    rng = random.Random(f"{taste.name}/{name}")
    rows: list[Row] = []
    for question, (text, _) in zip(asked, answers, strict=True):
        reaction = react(taste, question, text, rng, habits)
        if not text or reaction.kind == "nothing":
            continue
        if reaction.kind == "edit":
            rows += [row(question, str(reaction.text), True), row(question, text, False)]
        else:
            rows.append(row(question, text, bool(reaction.up)))
    return rows


def liked(taste: Taste, asked: Sequence[Ask], answers: Sequence[tuple[str, str]]) -> float:
    """The share of answers that these users truly like."""
    assert taste.likes is not None, "a taste that can be learnt"
    likes = taste.likes
    return sum(likes(question, text) for question, (text, _) in zip(asked, answers, strict=True)) / len(asked)
