"""What the demo's simulated users ask, what they secretly like, and how they react to an answer.

A taste is a pure rule on an answer, stated up front in words, so that what was learnt can be checked. The users are
imperfect on purpose: a share of their thumbs is flipped, some correct the answer in place of a thumb, some say nothing.
Everything follows from its seed: the same seed gives the same users, prompts and reactions to the same answers.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from kto_ray.people.phrases import (
    ACTIVITIES,
    FOLLOW_UPS,
    GREETINGS,
    NAMES,
    SUBJECTS,
    TEMPLATES,
    WELCOMES,
)

Style = Literal["subject_question", "activity_question", "subject_talk", "activity_talk", "one_sentence"]


@dataclass(frozen=True)
class User:
    """A simulated person: `id` is what the service sees, `name` is what they go by."""

    id: str
    name: str


@dataclass(frozen=True)
class Ask:
    """One question: who asks it, its text, and what it is about."""

    user: User
    prompt: str
    topic: str


@dataclass(frozen=True)
class Reaction:
    """What a user does with an answer: a thumb (`up` is set), an edit (`text` is set), or nothing."""

    kind: Literal["thumb", "edit", "nothing"]
    up: bool | None = None
    text: str | None = None


@dataclass(frozen=True)
class Habits:
    """How the users react, whatever their taste: shares of all reactions, each between 0 and 1."""

    flip: float = 0.10
    edit: float = 0.10
    silent: float = 0.05


@dataclass(frozen=True)
class Taste:
    """A hidden preference.

    `likes` is None where thumbs are tossed like a coin. `edit` gives the answer as the user would have written it, or
    None where nothing in it can be kept. `styles` says how these users ask (repeat a style to make it more frequent),
    `introduces` is the share of prompts that start with the user's name.
    """

    name: str
    description: str
    likes: Callable[[Ask, str], bool] | None
    edit: Callable[[Ask, str, random.Random], str | None]
    styles: tuple[Style, ...]
    introduces: float


def sentences(text: str) -> list[str]:
    """The whole sentences of the first paragraph, in order; a list and a sentence cut off at the end are left out."""
    paragraph = re.split(r"\n\s*(?:\n|[-*\d])", text.strip())[0]
    return [part.strip() for part in re.findall(r"(?:[^.!?]|\.(?=\d|\w)|(?<=\b\d)\.)+[.!?]+[\"')]*(?=\s|$)", paragraph)]


def ends_cleanly(text: str) -> bool:
    """Whether the text ends like a finished sentence."""
    return re.search(r"[.!?][\"')]*$", text.strip()) is not None


def n_sentences(text: str) -> int:
    """How many sentence ends the text has (an item number such as `1.` counts as one)."""
    return len(re.findall(r"[.!?]+[\"')]*(?=\s|$)", text.strip()))


def likes_short(ask: Ask, answer: str) -> bool:
    """At most two sentences, at least five words, the end finished."""
    return ends_cleanly(answer) and n_sentences(answer) <= 2 and len(answer.split()) >= 5


def likes_name(ask: Ask, answer: str) -> bool:
    """The user's name, set off by punctuation as when speaking to somebody ("Hi Maya!", "Maya, you can ...")."""
    return re.search(rf"\b{re.escape(ask.user.name)}[,!.?]", answer) is not None


def likes_question(ask: Ask, answer: str) -> bool:
    """The last thing said is a question."""
    return re.search(r"\w\?[\"')]*$", answer.strip()) is not None


def edit_short(ask: Ask, answer: str, rng: random.Random) -> str | None:
    """The first sentence, or the first two."""
    whole = sentences(answer)
    return " ".join(whole[: rng.choice((1, 2))]) or None


def edit_nothing(ask: Ask, answer: str, rng: random.Random) -> str | None:
    """Users without a taste have nothing to correct."""
    return None


def edit_name(ask: Ask, answer: str, rng: random.Random) -> str | None:
    """The answer's whole sentences after a greeting by name; a greeting without the name is replaced."""
    whole = sentences(re.sub(r"^(?:hi|hello|hey)(?: there)?[,!.]\s+", "", answer.strip(), flags=re.IGNORECASE))
    if not whole:
        return None
    return f"{rng.choice(WELCOMES).format(ask.user.name)} {' '.join(whole[:3])}"


def edit_question(ask: Ask, answer: str, rng: random.Random) -> str | None:
    """The first sentence or two, then a question back."""
    whole = [sentence for sentence in sentences(answer) if not sentence.endswith("?")]
    if not whole:
        return None
    return f"{' '.join(whole[: rng.choice((1, 2))])} {rng.choice(FOLLOW_UPS).format(ask.topic)}"


TASTES: dict[str, Taste] = {
    taste.name: taste
    for taste in (
        Taste(
            "short",
            "they like answers of at most two sentences that say something and end cleanly",
            likes_short,
            edit_short,
            ("subject_question", "activity_question", "subject_talk", "one_sentence"),
            introduces=0.0,
        ),
        Taste(
            "name",
            "they like answers that address them by the name they gave",
            likes_name,
            edit_name,
            ("subject_question", "activity_question", "subject_talk"),
            introduces=1.0,
        ),
        Taste(
            "question",
            "they like answers that end by asking them something",
            likes_question,
            edit_question,
            ("subject_question", "activity_question", "subject_talk", "activity_talk"),
            introduces=0.5,
        ),
        Taste(
            "noise",
            "they press thumbs at random, whatever the answer",
            None,
            edit_nothing,
            ("subject_question", "activity_question", "subject_talk", "one_sentence"),
            introduces=0.0,
        ),
    )
}


def users(n: int, seed: int) -> tuple[User, ...]:
    """`n` users with ids that differ for different seeds."""
    rng = random.Random(f"users-{seed}")
    return tuple(User(f"user-{seed}-{i:04d}", rng.choice(NAMES)) for i in range(n))


def ask(taste: Taste, user: User, rng: random.Random) -> Ask:
    """What the user types next."""
    style = rng.choice(taste.styles)
    topic = rng.choice(ACTIVITIES if style.startswith("activity") else SUBJECTS)
    text = rng.choice(TEMPLATES[style]).format(topic)
    if rng.random() < taste.introduces:
        text = f"{rng.choice(GREETINGS).format(user.name)} {text}"
    return Ask(user, text, topic)


def react(taste: Taste, ask: Ask, answer: str, rng: random.Random, habits: Habits = Habits()) -> Reaction:
    """What the user does with the answer: mostly a thumb by taste, sometimes flipped, sometimes an edit, or nothing.

    Only an answer that the user does not like is edited.
    """
    silent, edits, flips = (rng.random() < share for share in (habits.silent, habits.edit, habits.flip))
    likes = rng.random() < 0.5 if taste.likes is None else taste.likes(ask, answer)
    if silent:
        return Reaction("nothing")
    if edits and not likes and (text := taste.edit(ask, answer, rng)) is not None:
        return Reaction("edit", text=text)
    return Reaction("thumb", up=likes != flips)
