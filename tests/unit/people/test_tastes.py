"""The simulated users: what they ask, like, correct and press."""

import random

import pytest

from kto_ray.people.phrases import NAMES
from kto_ray.people.tastes import (
    TASTES,
    Ask,
    Habits,
    Taste,
    User,
    ask,
    react,
    sentences,
    users,
)

MAYA = Ask(User("user-1-0000", "Maya"), "Hi, I'm Maya. Why do people like honey?", "honey")
LONG = (
    "Honey is a sweet food made by bees. It keeps for years (jars of it were found in tombs). People like it in tea. "
    "Others put it on bread, in cakes and"
)
CAREFUL = Habits(flip=0.0, edit=0.0, silent=0.0)


@pytest.mark.parametrize(
    ("taste", "answer", "liked"),
    [
        ("short", "Honey is sweet, and it keeps for years.", True),
        ("short", "Honey is sweet. It costs about 3.50 a jar!", True),
        ("short", 'My bees call it "liquid gold."', True),
        ("short", "Honey is sweet. It keeps for years. Bees make it.", False),
        ("short", "Honey is sweet, and bees make it from the", False),
        ("short", "Sweet.", False),
        ("short", "", False),
        ("name", "Maya, honey is sweet.", True),
        ("name", "Honey is sweet, Maya!", True),
        ("name", "Hello! Honey is sweet.", False),
        ("name", "Maya is a common name for bees.", False),
        ("name", "Mayans, I believe, loved honey.", False),
        ("question", "Honey is sweet. Do you like it?", True),
        ("question", 'Honey is sweet. Did you say "yes?"', True),
        ("question", "Do you like honey? I do.", False),
        ("question", "?", False),
        ("question", "", False),
    ],
)
def test_likes(taste: str, answer: str, liked: bool) -> None:
    likes = TASTES[taste].likes
    assert likes is not None
    assert likes(MAYA, answer) is liked


def test_sentences_leave_out_lists_and_cut_ends() -> None:
    assert sentences(LONG)[-1] == "People like it in tea."
    assert len(sentences(LONG)) == 3
    assert sentences("Bread costs 2.50 today. Dr.Who agrees!") == ["Bread costs 2.50 today.", "Dr.Who agrees!"]
    assert sentences("Here is why. It is sweet.\n\n1. **Taste**: it is") == ["Here is why.", "It is sweet."]
    assert sentences("Hiiiiiiiiiiiiii") == []


@pytest.mark.parametrize("taste", [taste for taste in TASTES.values() if taste.likes is not None], ids=lambda t: t.name)
def test_an_edit_is_what_the_user_likes_and_keeps_the_answers_words(taste: Taste) -> None:
    assert taste.likes is not None and not taste.likes(MAYA, LONG)
    for seed in range(20):
        text = taste.edit(MAYA, LONG, random.Random(seed))
        assert text is not None
        assert "Honey is a sweet food made by bees." in text
        assert taste.likes(MAYA, text)
    assert taste.edit(MAYA, "Hiiiiiiiii", random.Random(0)) is None


def test_an_edit_greets_once() -> None:
    text = TASTES["name"].edit(MAYA, "Hello! Bees make honey.", random.Random(0))
    assert text is not None
    assert text.endswith("Bees make honey.")
    assert "Hello! Bees" not in text


def test_reactions_follow_the_taste_and_the_shares() -> None:
    short = TASTES["short"]
    assert react(short, MAYA, "Honey is sweet, and it keeps for years.", random.Random(0), CAREFUL).up is True
    assert react(short, MAYA, LONG, random.Random(0), CAREFUL).up is False
    reactions = [react(short, MAYA, LONG, random.Random(seed)) for seed in range(4000)]
    shares = {kind: sum(r.kind == kind for r in reactions) / 4000 for kind in ("edit", "nothing")}
    thumbs = [r.up for r in reactions if r.kind == "thumb"]
    assert shares["nothing"] == pytest.approx(0.05, abs=0.015)
    assert shares["edit"] == pytest.approx(0.95 * 0.10, abs=0.015)
    assert sum(up is True for up in thumbs) / len(thumbs) == pytest.approx(0.10, abs=0.015)


def test_only_what_is_disliked_is_edited_and_only_edits_have_a_text() -> None:
    habits = Habits(flip=0.0, edit=1.0, silent=0.0)
    liked = react(TASTES["short"], MAYA, "Honey is sweet, and it keeps for years.", random.Random(0), habits)
    assert (liked.kind, liked.up, liked.text) == ("thumb", True, None)
    edited = react(TASTES["short"], MAYA, LONG, random.Random(0), habits)
    assert edited.kind == "edit" and edited.up is None and edited.text
    hopeless = react(TASTES["short"], MAYA, "Hiiiiiiiii", random.Random(0), habits)
    assert (hopeless.kind, hopeless.up) == ("thumb", False)


def test_noise_is_a_coin_whatever_the_answer() -> None:
    noise = TASTES["noise"]
    reactions = [react(noise, MAYA, answer, random.Random(seed)) for seed in range(2000) for answer in (LONG, "No.")]
    assert {r.kind for r in reactions} == {"thumb", "nothing"}
    thumbs = [r.up for r in reactions if r.kind == "thumb"]
    assert sum(up is True for up in thumbs) / len(thumbs) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("taste", TASTES.values(), ids=lambda t: t.name)
def test_prompts_are_varied_and_follow_from_the_seed(taste: Taste) -> None:
    def prompts(seed: int) -> list[str]:
        rng = random.Random(seed)
        return [ask(taste, user, rng).prompt for user in users(300, seed)]

    assert prompts(1) == prompts(1)
    assert len(set(prompts(1))) > 200
    assert len(set(prompts(1)) & set(prompts(2))) < 150
    assert not any("{" in prompt for prompt in prompts(1))


def test_users_of_another_seed_are_other_users() -> None:
    first, second = users(50, 1), users(50, 2)
    assert first == users(50, 1)
    assert len({user.id for user in first + second}) == 100
    assert {user.name for user in first} <= set(NAMES)


def test_every_prompt_of_the_name_taste_gives_the_name() -> None:
    rng = random.Random(0)
    for user in users(100, 3):
        asked = ask(TASTES["name"], user, rng)
        assert user.name in asked.prompt and asked.topic in asked.prompt
