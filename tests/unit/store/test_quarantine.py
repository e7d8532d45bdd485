"""Quarantine beside the log: it asks indices what the pure function asks a history, and an operator decides."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import pytest
import sqlalchemy as sa

from kto_ray.config.capture import FeedbackSection
from kto_ray.feedback.quarantine import DAY_S, Why, held
from kto_ray.records.feedback import Feedback, FeedbackKind, Held
from kto_ray.store import Store, completions, feedback, labels, quarantine, tallies
from tests.support.rows import completion, thumb

RULES = FeedbackSection(burst_events=4, flood_events=8, flips=2, newcomer_edits=2, same_text=3, max_events=1000)


def history(chance: Random, number: int) -> list[Feedback]:
    """A month of some users with habits of their own, on answers of their own; and of a reviewer, on theirs."""
    at, said = 0.0, []
    for i in range(number):
        at += (1.0, 600.0, 0.1 * DAY_S, DAY_S)[i // 8 % 4] * chance.random()
        user = chance.choice(("ann", "ann", "ann", "bob", f"new{i}", None))
        edit, reviewed = chance.random() < 0.3, chance.random() < 0.1
        said.append(
            Feedback(
                id=f"f{i}",
                created_at=at,
                kind=FeedbackKind.EDIT if edit else FeedbackKind.THUMB,
                completion_id=f"{user}-{chance.randrange(3)}",
                user="judge" if reviewed else user,
                value=None if edit else chance.random() < 0.5,
                text=chance.choice(("Better.", *[f"{i}."] * 4)) if edit else None,
                reviewer=reviewed,
                seq=i,
            )
        )
    return said


def sweep(tx: sa.Connection) -> None:
    """As the loop does it, tick by tick."""
    after: int | None = 0
    while after is not None:
        some = quarantine.youth(tx, after, RULES)
        assert some.after is None or some.after > after
        quarantine.hold(tx, some.found, Why.NEWCOMER)
        after = some.after


@pytest.mark.parametrize("seed", range(6))
def test_the_store_holds_what_the_pure_function_holds(store: Store, seed: int) -> None:
    said = history(Random(seed), 150)
    with store.write() as tx:
        for event in said:
            if completions.get(tx, str(event.completion_id)) is None:
                owner = str(event.completion_id).rpartition("-")[0]
                completions.insert(tx, completion(str(event.completion_id), user=None if owner == "None" else owner))
            feedback.record(tx, replace(event, seq=None), RULES)
        sweep(tx)
        expected = held(said, RULES)
        assert {event.id: event.held_why for event in quarantine.waiting(tx, limit=1000)} == expected
        assert tallies.total(tx).held == sum(quarantine.by_reason(tx).values()) == len(expected)
        assert len(set(expected.values())) >= 4, "a history that holds for few reasons shows little"


def caught(store: Store) -> list[str]:
    """Eight thumbs at once, of which four wait."""
    with store.write() as tx:
        for i in range(8):
            completions.insert(tx, completion(f"c{i}"))
            feedback.record(tx, thumb(f"f{i}", f"c{i}"), RULES)
        return [event.id for event in quarantine.waiting(tx, Why.BURST, "ann")]


def test_an_operator_releases_and_drops(store: Store) -> None:
    assert caught(store) == ["f4", "f5", "f6", "f7"]
    with store.write() as tx:
        assert tallies.total(tx).up == 4
        assert quarantine.release(tx, ["f4", "f5", "f0", "none"]) == 2
        assert quarantine.drop(tx, ["f6", "f0"]) == 1
        assert (tallies.total(tx).up, tallies.total(tx).held) == (6, 1)
        assert quarantine.by_reason(tx) == {"burst": 1}
        assert quarantine.release(tx, ["f6"]) == 1 and quarantine.drop(tx, ["f4"]) == 1  # a second thought
        assert quarantine.release(tx, ["f6"]) == 0
        assert (tallies.total(tx).up, tallies.total(tx).held) == (6, 1)
        standing = {event.id: event.held for i in range(8) for event in feedback.events(tx, f"c{i}")}
        assert standing["f4"] is Held.DROPPED and standing["f6"] is Held.RELEASED and standing["f7"] is Held.HELD
        assert feedback.left_out(tx).held == 2


def test_what_can_never_count_is_not_released(store: Store) -> None:
    with store.write() as tx:
        completions.insert(tx, completion())
        feedback.record(tx, thumb("f1", user="mallory"))
        assert quarantine.release(tx, ["f1"]) == 0 and tallies.total(tx).labels == 0


@pytest.mark.parametrize("first", ["answer", "thumb"])
def test_what_a_reviewer_says_of_their_own_answer_is_a_users_word(store: Store, first: str) -> None:
    theirs: dict[str, Any] = {"user": "app/ann", "principal": "app"}
    with store.write() as tx:
        for i in range(8):
            if first == "answer":
                completions.insert(tx, completion(f"c{i}", **theirs), RULES)
            feedback.record(tx, thumb(f"f{i}", f"c{i}", reviewer=True, **theirs), RULES)
            completions.insert(tx, completion(f"c{i}", **theirs), RULES)
        completions.insert(tx, completion("of-bob", user="app/bob", principal="app"))
        feedback.record(tx, thumb("review", "of-bob", reviewer=True, **theirs), RULES)
        assert [event.id for event in quarantine.waiting(tx, Why.BURST)] == ["f4", "f5", "f6", "f7"]
        assert not any(event.reviewer for i in range(8) for event in feedback.events(tx, f"c{i}"))
        assert [label.reviewer for label in labels.of(tx, "of-bob")] == [True]


def test_a_second_thought_that_is_held_suspends_the_first(store: Store) -> None:
    for how, expected in ((quarantine.release, "down"), (quarantine.drop, "up")):
        with store.write() as tx:
            name = f"of-{expected}"
            completions.insert(tx, completion(name, user=name))
            feedback.record(tx, thumb(f"1-{name}", name, user=name), RULES)
            feedback.record(tx, thumb(f"2-{name}", name, False, user=name), RULES)
            quarantine.hold(tx, [f"2-{name}"], Why.BURST)
            assert labels.of(tx, name) == []
            assert how(tx, [f"2-{name}"]) == 1
            assert [label.verdict.value for label in labels.of(tx, name)] == [expected]


@pytest.mark.parametrize("how", ["pending", "stranger", "withdrawn", "dropped", "on their own"])
def test_a_user_grows_older_by_what_stands_on_answers_of_theirs(store: Store, how: str) -> None:
    first = {"pending": "none", "stranger": "of-ann-1"}.get(how, "of-new-20")
    with store.write() as tx:
        for day, user in (*((d, "ann") for d in range(20)), (20, "new"), (28, "new")):
            completions.insert(tx, completion(f"of-{user}-{day}", user=user))
            of = first if (day, user) == (20, "new") else f"of-{user}-{day}"
            feedback.record(tx, thumb(f"{user}-{day}", of, user=user, created_at=day * DAY_S), RULES)
            if of == "of-new-20" and how == "withdrawn":
                feedback.withdraw(tx, "new-20", 30 * DAY_S)
            if of == "of-new-20" and how == "dropped":
                quarantine.drop(tx, ["new-20"])
        assert bool(labels.of(tx, "of-new-28")) is (how == "on their own")


def test_what_waits_for_its_answer_is_not_held_for_its_users_age(store: Store) -> None:
    with store.write() as tx:
        feedback.record(tx, thumb("early", "none", user="new"), RULES)
        for day in range(20):
            completions.insert(tx, completion(f"c{day}"))
            feedback.record(tx, thumb(f"f{day}", f"c{day}", created_at=300 + day * DAY_S), RULES)
        sweep(tx)
        assert quarantine.waiting(tx) == [] and tallies.total(tx).pending == 1


def test_what_costs_nothing_to_send_keeps_nobody_from_giving_the_same_text(store: Store) -> None:
    def edit(name: str, of: str, user: str | None) -> Feedback:
        return thumb(name, of, None, user=user, kind=FeedbackKind.EDIT, text="Paris.")

    def of_ann(number: int) -> str | None:
        completions.insert(tx, completion(f"c{number}"))
        return feedback.record(tx, edit(f"f{number}", f"c{number}", "ann"), RULES).label

    with store.write() as tx:
        completions.insert(tx, completion("of-bob", user="bob"))
        for i in range(6):
            completions.insert(tx, completion(f"of-nobody-{i}", user=None))
            for name, of, user in (
                ("n", f"of-nobody-{i}", None),
                ("p", f"none-{i}", f"p{i}"),
                ("s", "of-bob", f"s{i}"),
            ):
                feedback.record(tx, edit(f"{name}{i}", of, user), RULES)
        assert of_ann(1) == "edit", "there is one other: nobody in particular"
        feedback.record(tx, edit("bob", "of-bob", "bob"), RULES)
        assert of_ann(2) is None


def test_who_comes_back_frees_what_they_said(store: Store) -> None:
    with store.write() as tx:
        for name, user, day in (("c1", "ann", 0), ("c2", "new", 20), ("c3", "new", 28), ("c4", "other", 28)):
            completions.insert(tx, completion(name, user=user))
            receipt = feedback.record(tx, thumb(f"f-{name}", name, user=user, created_at=day * DAY_S))
            if name == "c2":
                assert receipt.label is None and "newcomer" in str(receipt.why)
        assert [event.id for event in quarantine.waiting(tx)] == ["f-c4"]
        assert (tallies.total(tx).up, tallies.total(tx).held) == (3, 1)
