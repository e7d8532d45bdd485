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
from kto_ray.store import Store, completions, feedback, labels, rounds, tallies
from kto_ray.store.mapping import feedback_of
from kto_ray.store.schema import feedback as feedback_table
from kto_ray.store.tallies import Tally
from tests.support.rows import completion, erase, thumb

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
                erase(tx, random.choice(("ann", "bob")))
            case _:
                feedback.record(tx, said(random, number))


def counted(tx: sa.Connection, came: int) -> Tally:
    """The totals, by walking everything; `came` has a walk of its own."""
    query = sa.select(feedback_table).order_by(feedback_table.c.id)
    every = [feedback_of(row) for row in tx.execute(query).mappings()]
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
        came=came,
    )


class Unseen:
    """Which labels no round has seen, by comparing what stands after each thing that happened."""

    def __init__(self) -> None:
        self.standing: dict[tuple[str, str], tuple[Label, int]] = {}  # and the round when it came to be so
        self.round = 0

    def look(self, now: list[Label], round_now: int) -> int:
        before, self.round = self.standing, round_now
        self.standing = {}
        for label in now:
            key = (label.completion_id, label.user)
            known = before.get(key)
            self.standing[key] = known if known is not None and known[0] == label else (label, round_now)
        return sum(since == round_now for _, since in self.standing.values())


@pytest.mark.parametrize("seed", range(8))
def test_labels_and_totals_follow_the_log_through_any_history(store: Store, seed: int) -> None:
    chance, unborn, unseen = random.Random(seed), list(NAMES), Unseen()
    chance.shuffle(unborn)
    for number in range(60):
        happen(store, chance, number, unborn)
        with store.read() as tx:
            assert tallies.total(tx) == counted(tx, tallies.total(tx).came)
            standing: list[Label] = []
            for name in NAMES:
                found = completions.get(tx, name)
                pure = labels_of(found, feedback.events(tx, name)) if found else ()
                standing += [Label(one.completion_id, one.user, one.verdict, one.at) for one in pure]
                assert labels.of(tx, name) == [one for one in standing if one.completion_id == name]
            assert rounds.new_labels(tx) == unseen.look(standing, unseen.round)
        if chance.random() < 0.1:
            with store.write() as tx:
                unseen.round = rounds.insert(tx, float(number)).id


def test_labels_that_go_leave_the_new_ones_new(store: Store) -> None:
    with store.write() as tx:
        for i in range(8):
            completions.insert(tx, completion(f"c{i}", user=f"u{i}"))
            feedback.record(tx, thumb(f"f{i}", f"c{i}", user=f"u{i}"))
        assert rounds.new_labels(tx) == 8
        rounds.insert(tx, 1000.0)
        assert rounds.new_labels(tx) == 0
        for i in range(4):
            erase(tx, f"u{i}")
        feedback.withdraw(tx, "f4", 2000.0)
        for i in range(5, 7):  # another word on the same answer is news
            feedback.record(tx, thumb(f"again{i}", f"c{i}", value=False, user=f"u{i}", created_at=3000.0))
        completions.insert(tx, completion("late", user="late"))
        feedback.record(tx, thumb("old", "late", user="late", created_at=1.0))  # an import, say
        assert rounds.new_labels(tx) == 3
        feedback.withdraw(tx, "old", 4000.0)
        assert rounds.new_labels(tx) == 2
