"""One meaning of a label: what the store keeps is what the pure function says, whatever happened and in which order."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import sqlalchemy as sa

from kto_ray.feedback.labels import labels as labels_of
from kto_ray.records.completions import Completion
from kto_ray.records.feedback import Feedback, FeedbackKind
from kto_ray.records.labels import Label, Verdict
from kto_ray.store import Store, completions, feedback, labels, tallies, users
from kto_ray.store.tallies import Tally
from tests.support.rows import completion

NAMES = tuple(f"c{i}" for i in range(6))
PEOPLE = ("ann", "bob", None)


def made(random: random.Random, name: str) -> Completion:
    return completion(
        name,
        text=random.choice(("Hello.", "Hello.", " ")),
        status=random.choice(("complete", "complete", "aborted")),
        user=random.choice(PEOPLE),
        task=random.choice((None, None, "title")),
    )


def said(random: random.Random, number: int) -> Feedback:
    kind = random.choice(list(FeedbackKind))
    return Feedback(
        id=f"f{number}",
        created_at=float(random.randrange(20)),
        kind=kind,
        completion_id=random.choice(NAMES),
        user=random.choice(PEOPLE),
        value=random.random() < 0.5 if kind is FeedbackKind.THUMB else None,
        text=random.choice(("Hello.", "Hello. ", "Better.", "Best.")) if kind is FeedbackKind.EDIT else None,
    )


def happen(store: Store, random: random.Random, number: int, unborn: list[str]) -> None:
    """One thing, in a transaction of its own."""
    with store.write() as tx:
        match random.choice(("completion", "feedback", "feedback", "feedback", "withdraw", "erase")):
            case "completion" if unborn:
                completions.insert(tx, made(random, unborn.pop()))
            case "withdraw" if number:
                feedback.withdraw(tx, f"f{random.randrange(number)}", 50.0)
            case "erase" if random.random() < 0.2:
                users.erase(tx, random.choice(("ann", "bob")))
            case _:
                feedback.record(tx, said(random, number))


def counted(tx: sa.Connection) -> Tally:
    """The totals, by walking everything."""
    every = feedback.every(tx)
    known = [found for name in NAMES if (found := completions.get(tx, name)) is not None]
    verdicts = Counter(label.verdict for one in known for label in labels_of(one, feedback.events(tx, one.id)))
    joined = {event.id for one in known for event in feedback.events(tx, one.id)}
    return Tally(
        completions=len(known),
        stored=len(every),
        pending=sum(event.id not in joined for event in every),
        withdrawn=sum(event.withdrawn_at is not None for event in every),
        up=verdicts[Verdict.UP],
        down=verdicts[Verdict.DOWN],
        edits=verdicts[Verdict.EDIT],
    )


@pytest.mark.parametrize("seed", range(8))
def test_labels_and_totals_follow_the_log_through_any_history(store: Store, seed: int) -> None:
    chance, unborn = random.Random(seed), list(NAMES)
    chance.shuffle(unborn)
    for number in range(60):
        happen(store, chance, number, unborn)
        with store.read() as tx:
            assert tallies.total(tx) == counted(tx)
            for name in NAMES:
                found = completions.get(tx, name)
                pure = labels_of(found, feedback.events(tx, name)) if found else ()
                assert labels.of(tx, name) == [Label(one.completion_id, one.user, one.verdict, one.at) for one in pure]
