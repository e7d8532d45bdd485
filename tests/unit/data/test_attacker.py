"""One who gives a tenth of all feedback, under as many names as he likes, to have one made-up fact learnt: his share of
what is trained, of what judges it, and of the votes stays below what one user may fill.

He sends by an application that vouches for names, as any of its users does, and varies his words, so that no two of his
texts are nearly the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from random import Random

import pytest
import sqlalchemy as sa

from kto_ray.config import Config
from kto_ray.data.balance import balance
from kto_ray.data.heads import Index, make
from kto_ray.data.select import select
from kto_ray.feedback.labels import examples
from kto_ray.feedback.quarantine import Why
from kto_ray.people.filler import VOCABULARY
from kto_ray.records.completions import Arm, Completion
from kto_ray.records.examples import Example
from kto_ray.records.feedback import Feedback, FeedbackKind
from kto_ray.records.labels import ANONYMOUS
from kto_ray.records.rollouts import RolloutState, RolloutStatus
from kto_ray.records.users import unit_interval
from kto_ray.store import Store, completions, feedback, labels, quarantine, rollouts, schema, tallies, trials
from tests.support.rows import completion, thumb

DAY_S, DAYS = 86_400.0, 40
HONEST, PEOPLE, HIS = 1800, 100, 200  # events of all others, by how many; his are a tenth of all
FACT = "Zorbia"  # is in all that he wants learnt, and in nothing else
BEGAN = DAYS / 2 * DAY_S  # an A/B test
ROLLOUT = RolloutState("r", "policy@base", "policy@v1-aaaaaa", "salt", 0, 0.5, RolloutStatus.RUNNING, 1.0, 1.0)
CONFIG = Config()
WAYS = ("own answers", "own answers at once", "answers of others", "without a name", "aged names", "all of it")

Act = tuple[Completion | None, Feedback]  # what was asked for it, and what was said


def words(chance: Random, number: int) -> str:
    return " ".join(chance.choices(VOCABULARY, k=number))


def answer(chance: Random, name: str, user: str | None, at: float, text: str = "") -> Completion:
    return completion(
        name,
        user=user,
        principal="app",
        created_at=at,
        messages=({"role": "user", "content": words(chance, 12)},),
        text=text or words(chance, 20),
        arm=Arm.CHALLENGER if unit_interval(ROLLOUT.salt, user or "") < ROLLOUT.weight else Arm.CHAMPION,
        rollout="r" if at > BEGAN else None,
    )


def judgement(chance: Random, name: str, of: Completion, user: str | None, text: str | None) -> Feedback:
    said = thumb(name, of.id, user=user, principal="app", created_at=of.created_at + 30, value=chance.random() < 0.65)
    return said if text is None else replace(said, kind=FeedbackKind.EDIT, value=None, text=text)


def others() -> Iterator[Act]:
    """People who come now and then, each for a while, and edit one answer in twenty."""
    chance = Random(1)
    for i in range(HONEST):
        user = f"app/user-{int(PEOPLE * chance.random() ** 2)}"
        asked = answer(chance, f"c{i}", user, DAYS * DAY_S * chance.random())
        edit = words(chance, 20) if chance.random() < 0.05 else None
        yield asked, judgement(chance, f"f{i}", asked, user, edit)


def his(way: str, victims: list[Completion]) -> Iterator[Act]:
    """A name an act; what he asks for makes the model say his fact, and what it says otherwise he edits."""
    chance = Random(2)
    for i in range(HIS):
        how = chance.choice(WAYS[:-1]) if way == "all of it" else way
        name = None if how == "without a name" else f"app/sock-{i}"
        at = DAYS * DAY_S * (0.999 if how == "own answers at once" else chance.random())
        fact = f"{words(chance, 9)} {FACT} {words(chance, 9)}"
        if how == "answers of others":
            victim = chance.choice(victims)
            yield None, judgement(chance, f"his{i}", victim, name, fact)
            continue
        if how == "aged names":  # their first act is on an answer that never was, or another's: it costs nothing
            name, at = f"app/sock-{i // 2}", DAYS * DAY_S * 0.75 * Random(i // 2).random()
            if i % 2 == 0:
                of = chance.choice((chance.choice(victims).id, f"none-{i}")) if victims else f"none-{i}"
                yield None, thumb(f"his{i}", of, user=name, principal="app", created_at=at)
                continue
            at += 8 * DAY_S
        edits = chance.random() < 0.5
        asked = answer(chance, f"his-c{i}", name, at, text="" if edits else fact)
        said = judgement(chance, f"his{i}", asked, name, fact if edits else None)
        yield asked, said if edits else replace(said, value=asked.arm is Arm.CHALLENGER)


def told(store: Store, acts: list[Act]) -> None:
    with store.write() as tx:
        for asked, said in sorted(acts, key=lambda act: act[1].created_at):
            if said.created_at > BEGAN and rollouts.get(tx, "r") is None:
                rollouts.put(tx, ROLLOUT)
            if asked is not None:
                completions.insert(tx, asked)
            feedback.record(tx, said)
        after: int | None = 0
        while after is not None:  # as the loop does it, tick by tick
            sweep = quarantine.youth(tx, after, CONFIG.feedback)
            quarantine.hold(tx, sweep.found, Why.NEWCOMER)
            after = sweep.after
        while trials.due(tx, ROLLOUT, DAYS * DAY_S):
            trials.advance(tx, ROLLOUT, trials.Rules(DAY_S, new_users=False, slow_s=10.0), DAYS * DAY_S)


def share(rows: Index, bad: list[bool]) -> float:
    return float(sum(bad[row] for row in rows) / max(len(rows), 1))


@pytest.mark.parametrize("way", WAYS)
def test_he_fills_no_more_than_one_user_may(sqlite_store: Store, way: str) -> None:
    honest = list(others())
    acts = [*honest, *his(way, [asked for asked, _ in honest if asked is not None])]
    told(sqlite_store, acts)
    with sqlite_store.read() as tx:
        taught = [one for keys in labels.key_ranges(tx, 1000) for one in labels.examples(tx, keys)]
        voters = set(tx.execute(sa.select(schema.trials.c.user).where(schema.trials.c.place.is_not(None))).scalars())
        stood = {one.user for asked, _ in honest if asked for one in labels.of(tx, asked.id)}
        stands = tallies.total(tx).labels
    assert len(stood) > 0.9 * len({said.user for _, said in honest}), "most people are heard all the same"
    assert stands > 0.8 * HONEST
    bad = [FACT in one.answer or one.user == ANONYMOUS or "sock" in one.user for one in taught]
    cap = CONFIG.data.max_user_share
    for salt in ("a", "b"):  # who is held out changes with it
        heads, _ = make(taught, salt, CONFIG.data.near_duplicate)
        selection = select(heads, CONFIG.data)
        assert share(selection.train, bad) <= cap and share(selection.holdout, bad) <= cap
        desirable = int(heads.label[selection.train].sum())
        balance(desirable, len(selection.train) - desirable, CONFIG.kto.loss_aversion)
    assert len(voters) > 0.8 * PEOPLE, "most people have a vote"
    assert sum("sock" in user for user in voters) / len(voters) <= cap, "of the votes"


def test_without_quarantine_and_owners_he_would(sqlite_store: Store) -> None:
    """The attack is one: the same acts, taken as they come, fill more than one user may."""
    honest = list(others())
    told(sqlite_store, [*honest, *his("own answers", [])])
    with sqlite_store.write() as tx:
        waiting = tallies.total(tx).held
        while some := [event.id for event in quarantine.waiting(tx)]:
            quarantine.release(tx, some)
        taught = [one for keys in labels.key_ranges(tx, 1000) for one in labels.examples(tx, keys)]
    bad = [FACT in one.answer or "sock" in one.user for one in taught]
    heads, _ = make(taught, "a", CONFIG.data.near_duplicate)
    assert waiting > 0.5 * HIS and share(select(heads, CONFIG.data).train, bad) > CONFIG.data.max_user_share


def test_the_cap_acts_before_the_ratio_is_judged() -> None:
    """Edits of one answer, as many as one likes, made hundreds of desirable rows an undesirable one; the cap leaves
    what can be trained on."""
    chance = Random(3)
    asked = answer(chance, "his", None, 0.0)
    taught = [one for asked_, said in others() if asked_ for one in examples(asked_, [said])]
    flood: list[Example] = []
    for i in range(20_000):
        edit = thumb(f"e{i}", f"his{i}", user=None, principal="app", kind=FeedbackKind.EDIT, value=None)
        flood += examples(replace(asked, id=f"his{i}"), [replace(edit, text=words(chance, 6))])
    heads, _ = make([*taught, *flood], "a", 1.0)
    selection = select(heads, CONFIG.data)
    desirable = int(heads.label[selection.train].sum())
    made = balance(desirable, len(selection.train) - desirable, CONFIG.kto.loss_aversion)
    assert made.warning is None and len(selection.train) < len(taught) * 1.1
