"""One meaning of a label: what the store keeps is what the pure function says, whatever happened and in which order."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import replace
from random import Random
from typing import Any

import hypothesis.strategies as st
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings

from kto_ray.config.capture import FeedbackSection
from kto_ray.feedback.labels import labels as labels_of
from kto_ray.records.completions import Arm, Completion, ExternalRef
from kto_ray.records.feedback import Feedback, FeedbackKind, Held, Signal
from kto_ray.records.labels import Label, Verdict
from kto_ray.records.trials import Votes
from kto_ray.store import Store, completions, feedback, joining, labels, quarantine, rounds, tallies
from kto_ray.store.mapping import feedback_of
from kto_ray.store.recording import TooManyEvents
from kto_ray.store.schema import feedback as feedback_table
from kto_ray.store.schema import metadata, sequence
from kto_ray.store.tallies import Tally
from tests.support.rows import completion, erase, thumb

NAMES = tuple(f"c{i}" for i in range(4))
TEXTS = ("Hello.", "Hello. ", "Better.", "Best.")
DAY_S = 86_400.0
# Low limits, so that quarantine has something to hold.
STRICT = FeedbackSection(burst_events=3, newcomer_edits=1, flips=1, same_text=2, max_events=4)


def mostly(chance: Random, usual: Any, *others: Any) -> Any:
    return chance.choice(others) if chance.random() < 0.2 else usual


def person(chance: Random) -> str | None:
    return chance.choice(("ann", "ann", "ann", "bob", None))


def asked(chance: Random) -> Completion:
    turn = chance.randrange(len(NAMES))
    return completion(
        NAMES[turn],
        text=mostly(chance, "Hello.", " "),
        tool_calls=mostly(chance, (), ({"function": {"name": "tide"}},)),
        status=mostly(chance, "complete", "aborted"),
        user=person(chance),
        principal=mostly(chance, None, "app"),
        task=mostly(chance, None, "title"),
        forced=mostly(chance, False, True),
        external=chance.choice((None, ExternalRef("ui", "k", f"m{turn % 2}"))),
    )


def said(chance: Random, number: int) -> Feedback:
    """By id, by the message of another system, or on its whole conversation; on what is there or not yet."""
    kind = mostly(chance, chance.choice((FeedbackKind.THUMB, FeedbackKind.EDIT)), *FeedbackKind)
    of = mostly(chance, chance.choice(NAMES), "never", "m0", "m1", "all")
    ref = ExternalRef("ui", "k", None if of == "all" else of) if of in ("m0", "m1", "all") else None
    return Feedback(
        id=f"f{number}",
        created_at=chance.choice((1.0, 10 * DAY_S, 40 * DAY_S)) + chance.randrange(90),
        kind=kind,
        completion_id=None if ref else of,
        external=ref,
        user=person(chance),
        principal=mostly(chance, None, "app"),
        reviewer=mostly(chance, False, True),
        value=chance.random() < 0.5 if kind in (FeedbackKind.THUMB, FeedbackKind.SIGNAL) else None,
        signal=Signal.COPIED if kind is FeedbackKind.SIGNAL else None,
        text=chance.choice(TEXTS) if kind is FeedbackKind.EDIT else None,
        idempotency_key=mostly(chance, None, "k"),
        body_hash="a",
    )


def happen(tx: sa.Connection, chance: Random, number: int, rules: FeedbackSection) -> None:
    some = f"f{chance.randrange(number + 1)}"
    match chance.choice(
        ("ask", "ask", *["say"] * 8, "withdraw", "release", "drop", "erase", "join", "expire", "round")
    ):
        case "ask":
            one = asked(chance)
            if completions.get(tx, one.id) is None:
                completions.insert(tx, one, rules)
        case "say":
            with suppress(TooManyEvents):
                feedback.record(tx, said(chance, number), rules)
        case "withdraw":
            feedback.withdraw(tx, some, 50.0)
        case "release":
            quarantine.release(tx, [some])
        case "drop":
            quarantine.drop(tx, [some])
        case "erase" if chance.random() < 0.3:
            erase(tx, chance.choice(("ann", "bob")))
        case "join":
            joining.join(tx, joining.overlooked(tx).found, rules)
        case "expire":
            joining.expire(tx, joining.overlooked(tx, before=2 * DAY_S).stale)
        case "round" if chance.random() < 0.3:
            rounds.insert(tx, float(number))


def logged(tx: sa.Connection) -> list[Feedback]:
    query = sa.select(feedback_table).order_by(feedback_table.c.seq)
    return [feedback_of(row) for row in tx.execute(query).mappings()]


def counted(tx: sa.Connection, came: int) -> Tally:
    """The totals, by walking everything; `came` has a walk of its own."""
    every = logged(tx)
    known = [found for name in NAMES if (found := completions.get(tx, name)) is not None]
    verdicts = Counter(label.verdict for one in known for label in labels_of(one, feedback.events(tx, one.id)))
    joined = {event.id for one in known for event in feedback.events(tx, one.id)}
    return Tally(
        completions=len(known),
        stored=len(every),
        pending=sum(event.id not in joined and event.held is None for event in every),
        withdrawn=sum(event.withdrawn_at is not None for event in every),
        up=verdicts[Verdict.UP],
        down=verdicts[Verdict.DOWN],
        edits=verdicts[Verdict.EDIT],
        came=came,
        held=sum(event.held is Held.HELD for event in every),
        strangers=sum(event.held_why == "stranger" for event in every),
        orphans=sum(event.held_why == "orphan" for event in every),
    )


class Unseen:
    """Which labels no round has seen, by comparing what stands after each thing that happened."""

    def __init__(self) -> None:
        self.standing: dict[tuple[str, str], tuple[Label, int]] = {}  # and the round when it came to be so

    def look(self, now: list[Label], round_now: int) -> int:
        before = self.standing
        self.standing = {}
        for label in now:
            key = (label.completion_id, label.user)
            known = before.get(key)
            same = known is not None and (known[0], known[0].seq) == (label, label.seq)
            self.standing[key] = known if known is not None and same else (label, round_now)
        return sum(since == round_now for _, since in self.standing.values())


def empty(store: Store) -> None:
    with store.write() as tx:
        for table in reversed(metadata.sorted_tables):
            if table.name not in ("tallies", "sequence", "compatibility"):
                tx.execute(table.delete())
        tx.exec_driver_sql("UPDATE tallies SET " + ", ".join(f"{name} = 0" for name in tallies.NAMES))
        if store.sqlite:
            tx.execute(sequence.update().values(value=0))
        tx.info.pop(quarantine.BEGAN, None)


@pytest.mark.parametrize("rules", [FeedbackSection(), STRICT, FeedbackSection(spread="all", newcomer_days=0)])
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1))
def test_labels_and_totals_follow_the_log_through_any_history(store: Store, rules: FeedbackSection, seed: int) -> None:
    empty(store)
    chance, unseen = Random(seed), Unseen()
    for number in range(40):
        with store.write() as tx:
            happen(tx, chance, number, rules)
        with store.read() as tx:
            assert tallies.total(tx) == counted(tx, tallies.total(tx).came)
            standing: list[Label] = []
            for name in NAMES:
                found = completions.get(tx, name)
                pure = labels_of(found, feedback.events(tx, name)) if found else ()
                bare = [replace(one, text=None) for one in pure]
                assert labels.of(tx, name) == bare
                standing += bare
            assert rounds.new_labels(tx) == unseen.look(standing, rounds.count(tx))


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


def test_who_judged_of_late_counts_as_a_test_would_count_them(store: Store) -> None:
    """Of ten days, five are looked at: ann and cat were there before, bob came since, dan and the rest do not count."""
    now = 20 * DAY_S

    def answered(tx: sa.Connection, name: str, user: str, day: float, **changes: Any) -> None:
        completions.insert(tx, completion(name, user=user, created_at=day * DAY_S, **changes))

    def judged(tx: sa.Connection, name: str, user: str, value: bool, day: float, **changes: Any) -> None:
        made = thumb(f"f-{name}-{day}", name, value=value, user=user, created_at=day * DAY_S, **changes)
        feedback.record(tx, made)

    with store.write() as tx:
        answered(tx, "imported", "eve", 1, arm=Arm.IMPORT)
        for user in ("ann", "cat", "dan", "fay"):
            answered(tx, f"old-{user}", user, 10)
        judged(tx, "old-dan", "dan", True, 11)
        for name, user in (("a1", "ann"), ("a2", "ann"), ("b", "bob"), ("c", "cat"), ("d", "dan")):
            answered(tx, name, user, 16)
        answered(tx, "pinned", "fay", 16, arm=Arm.PINNED)
        answered(tx, "v", "app/gus", 16, principal="app")
        judged(tx, "v", "app/gus", False, 16.5, principal="app")
        judged(tx, "pinned", "fay", True, 17)
        judged(tx, "imported", "eve", True, 17)
        judged(tx, "a1", "ann", True, 17)
        judged(tx, "a1", "ann", False, 18)
        judged(tx, "a2", "ann", True, 18)
        judged(tx, "b", "bob", True, 18)
        judged(tx, "c", "cat", False, 18)
        judged(tx, "d", "ops", True, 18, reviewer=True)
    with store.read() as tx:
        assert labels.votes(tx, now, 13 * DAY_S, new_users=False) == Votes(2, 0.25, 5.0)
        assert labels.votes(tx, now, 13 * DAY_S, new_users=True) == Votes(4, 0.375, 5.0)
        assert labels.votes(tx, now, 13 * DAY_S, new_users=("other",)) == Votes(2, 0.25, 5.0)
        assert labels.votes(tx, now, 13 * DAY_S, new_users=("app",)) == Votes(3, 1 / 6, 5.0), "app vouches for gus"
        assert labels.votes(tx, now, 13 * DAY_S, settle_s=2 * DAY_S) == Votes(2, 0.25, 5.0)
        late = labels.votes(tx, now, 13 * DAY_S, new_users=True, settle_s=1.9 * DAY_S)
        assert late == Votes(1, 0.0, 5.0), "whoever takes longer to judge has no trial"
        assert labels.votes(tx, now, 2.5 * DAY_S, new_users=True) == Votes(0, 0.5, 2.5), "of answers before the test"
        assert labels.votes(tx, now + 40 * DAY_S, 90 * DAY_S, new_users=True) == Votes(0, 0.5, 14.0)
        assert labels.votes(tx, 11.9 * DAY_S, 13 * DAY_S, new_users=True) is None, "too young to tell"


def test_since_when_a_service_answers_is_found_without_a_walk_over_what_was_imported(store: Store) -> None:
    with store.write() as tx:
        completions.insert_all(tx, [completion(f"i{i}", arm=Arm.IMPORT, created_at=float(i)) for i in range(50)])
        completions.insert(tx, completion("own", created_at=100.0))
    asked = list[tuple[str, Any]]()
    with store.read() as tx:
        sa.event.listen(tx, "before_cursor_execute", lambda _, __, sql, values, *___: asked.append((sql, values)))
        assert labels.votes(tx, 100.0 + 30 * DAY_S, DAY_S, new_users=True) == Votes(0, 0.5, 1.0)
    (sql, values), *_ = asked
    with store.read() as tx:
        explain = "EXPLAIN QUERY PLAN" if store.sqlite else "EXPLAIN"
        if not store.sqlite:
            tx.exec_driver_sql("SET LOCAL enable_seqscan = off")  # which suits so few rows
        plan = str(tx.exec_driver_sql(f"{explain} {sql}", values).all())
    assert "ix_completions_served" in plan, plan


def test_a_store_without_answers_of_its_own_cannot_tell_who_judges(store: Store) -> None:
    with store.write() as tx:
        completions.insert(tx, completion("imported", arm=Arm.IMPORT))
    with store.read() as tx:
        assert labels.votes(tx, 1e9, DAY_S, new_users=True) is None
