"""What users of a test did, read once each, a fixed time after their first answer."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from kto_ray.records.completions import Arm
from kto_ray.records.feedback import Feedback, FeedbackKind, Signal
from kto_ray.records.rollouts import RolloutKind
from kto_ray.records.trials import Exposed
from kto_ray.records.users import unit_interval
from kto_ray.store import Store, completions, feedback, reactions, rollouts, trials
from kto_ray.store.trials import Rules
from tests.support.rows import completion, thumb
from tests.unit.store.test_trials import AMY, ANN, ART, BEN, BOB, DAY, STAGE, asked, judged, told

RULES = Rules(settle_s=DAY, new_users=True, slow_s=10.0, react_s=DAY)


def sent(name: str, of: str, user: str, signal: Signal = Signal.REGENERATED, at: float = 200.0) -> Feedback:
    return Feedback(name, at, FeedbackKind.SIGNAL, of, user, signal=signal)


def edit(name: str, of: str, user: str, text: str = "Better.", at: float = 200.0) -> Feedback:
    return replace(thumb(name, of, user=user, kind=FeedbackKind.EDIT, value=None), text=text, created_at=at)


def said(store: Store, *events: Feedback) -> None:
    with store.write() as tx:
        feedback.record_all(tx, events)


def test_users_are_read_once_whether_they_react_or_not_and_stay_as_they_were(store: Store) -> None:
    with store.write() as tx:
        rollouts.put(tx, STAGE)
        for name, user in (("a1", ANN), ("a2", ANN), ("b", BOB), ("c", ART), ("d", BEN)):
            asked(tx, name, user)
    said(
        store,
        sent("s1", "a1", ANN),
        sent("s2", "a2", ANN),
        sent("s3", "a2", ANN, Signal.DISAGREED),
        sent("s4", "b", BOB, Signal.COPIED),
        edit("e1", "b", BOB),
        edit("e2", "c", ART, text="Hello. "),  # changes nothing
        sent("s5", "d", BEN),
    )
    with store.write() as tx:
        feedback.withdraw(tx, "s5", 300.0)
    early = told(store, 100.0 + DAY - 1, RULES)
    assert (early.champion.observed, early.challenger.observed, early.challenger.known) == (0, 0, 2)
    then = told(store, 100.0 + DAY, RULES)
    assert then.challenger == Exposed(2, 2, observed=2, regenerated=1, disagreed=1)
    assert then.champion == Exposed(2, 2, observed=2, edited=1)
    said(store, sent("s6", "c", ART), edit("e3", "d", BEN))
    with store.write() as tx:
        feedback.withdraw(tx, "e1", 400.0)
        feedback.withdraw(tx, "s1", 400.0)
        feedback.withdraw(tx, "s2", 400.0)
    assert told(store, 9 * DAY, RULES) == replace(then, trials=told(store, 9 * DAY, RULES).trials)
    with store.read() as tx:
        done = {part.reactions for part in trials.history(tx, "r", 0)}
    assert done == {("regenerated", "disagreed"), ("edited",), ()}


def test_what_is_no_reaction_of_theirs_to_answers_of_the_test(store: Store) -> None:
    """Of before the first answer that counts, of another arm, of a task, of others, and too late."""
    with store.write() as tx:
        asked(tx, "old", ANN, at=50.0)
        rollouts.put(tx, STAGE)
        asked(tx, "a", ANN)
        asked(tx, "pinned", ANN, arm=Arm.PINNED, rollout=None)
        asked(tx, "task", ANN, task="title")
        asked(tx, "b", BOB)
    said(
        store,
        *(sent(f"s-{of}", of, ANN) for of in ("old", "pinned", "task")),
        sent("s-bob", "a", BOB),
        replace(sent("s-rev", "a", "rev"), reviewer=True),
        replace(edit("e-rev", "b", "rev"), reviewer=True),
        sent("s-late", "a", ANN, at=100.0 + DAY + 1),
        edit("e-late", "b", BOB, at=100.0 + DAY + 1),
    )
    found = told(store, 9 * DAY, RULES)
    assert (found.challenger, found.champion) == (Exposed(1, 1, observed=1), Exposed(1, 1, observed=1))


def test_the_first_answer_that_asks_for_a_thumb_is_rated(store: Store) -> None:
    with store.write() as tx:
        rollouts.put(tx, STAGE)
        for name, user, asks in (
            ("a1", ANN, False), ("a2", ANN, True), ("a3", ANN, True),
            ("c1", ART, True),
            ("m1", AMY, True),
            ("b1", BOB, False),
            ("d1", BEN, True),
        ):  # fmt: skip
            asked(tx, name, user, solicited=asks)
    ratings = (("a1", ANN, True), ("a2", ANN, False), ("a3", ANN, True), ("c1", ART, True), ("b1", BOB, True))
    said(store, *(thumb(f"f-{of}", of, user=user, value=value) for of, user, value in ratings))
    said(store, thumb("f-late", "m1", user=AMY, created_at=100.0 + DAY + 1))
    found = told(store, 2 * DAY, RULES)
    assert found.challenger == Exposed(3, 3, observed=3, solicited=3, rated=2, rated_up=1)
    assert found.champion == Exposed(2, 2, observed=2, solicited=1)


def test_an_answer_that_came_to_no_end_asked_nobody(store: Store) -> None:
    with store.write() as tx:
        rollouts.put(tx, STAGE)
        asked(tx, "a1", ANN, solicited=True, status="failed")
        asked(tx, "a2", ANN, solicited=True)
        asked(tx, "c1", ART, solicited=True, status="aborted")
    said(store, thumb("f", "a2", user=ANN, value=True))
    assert told(store, 2 * DAY, RULES).challenger == Exposed(
        2, 2, failed=1, aborted=1, observed=2, solicited=1, rated=1, rated_up=1
    )


def test_a_late_read_sees_what_stood_when_their_time_was_over(store: Store) -> None:
    """Turned, taken back and said again since, while no controller looked."""
    late, names = 100.0 + DAY + 1, {"a": ANN, "c": ART, "m": AMY, "b": BOB, "d": BEN}
    with store.write() as tx:
        rollouts.put(tx, STAGE)
        for name, user in names.items():
            asked(tx, name, user, solicited=True)
    said(
        store,
        thumb("f-a", "a", user=ANN, value=True),
        thumb("f-c", "c", user=ART, value=True),
        edit("e-m", "m", AMY),
        sent("s-b", "b", BOB),
        edit("e-d", "d", BEN),
    )
    said(store, thumb("f-a2", "a", user=ANN, value=False, created_at=late), edit("e-a", "a", ANN, "Late.", late))
    with store.write() as tx:
        for event in ("f-c", "e-m", "s-b"):
            feedback.withdraw(tx, event, late)
        feedback.withdraw(tx, "e-d", late - 2)
    found = told(store, 9 * DAY, RULES)
    assert found.challenger == Exposed(3, 3, observed=3, edited=1, solicited=3, rated=3, rated_up=2)
    assert found.champion == Exposed(2, 2, observed=2, regenerated=1, solicited=2)


def test_nobody_is_read_who_does_not_count_nor_of_a_holdback(store: Store) -> None:
    week = replace(STAGE, id="h", kind=RolloutKind.HOLDBACK)
    with store.write() as tx:
        completions.insert(tx, completion("old", user=ANN))
        for state in (STAGE, week):
            rollouts.put(tx, state)
        asked(tx, "a", ANN)
        asked(tx, "b", ART)
        completions.insert(tx, replace(completion("h", user=BOB, arm=Arm.CHAMPION), holdback="h"))
    found = told(store, 9 * DAY, replace(RULES, new_users=False))
    assert (found.challenger.users, found.challenger.known, found.challenger.observed) == (2, 1, 1)
    assert told(store, 9 * DAY, RULES, week).champion == Exposed(1, 1)


def test_nobody_is_found_clean_who_had_no_time(store: Store) -> None:
    with store.write() as tx:
        rollouts.put(tx, STAGE)
        asked(tx, "a", ANN)
    assert told(store, 9 * DAY, replace(RULES, settle_s=0.0, react_s=0.0)).challenger == Exposed(1, 1)


def test_a_stage_is_read_by_itself(store: Store) -> None:
    second = replace(STAGE, stage=1, stage_started_at=2.0)
    with store.write() as tx:
        rollouts.put(tx, STAGE)
        asked(tx, "a", ANN)
    said(store, sent("s1", "a", ANN))
    assert told(store, 100.0, RULES).challenger == Exposed(1, 1)
    with store.write() as tx:
        rollouts.put(tx, second)
        asked(tx, "a2", ANN, at=300.0)
    said(store, edit("e", "a2", ANN, at=301.0))
    assert told(store, 9 * DAY, RULES, second).challenger == Exposed(1, 1, observed=1, edited=1)


@pytest.mark.parametrize("seed", range(3))
def test_any_order_of_events_and_ticks_counts_the_same(
    store: Store, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the rule said plainly: events of a user's time come shuffled, and few users are read in a tick."""
    monkeypatch.setattr(reactions, "USERS", 4)
    chance = random.Random(seed)
    users = [f"u{i}" for i in range(24)]
    events, expected = list[Feedback](), {False: Exposed(), True: Exposed()}
    with store.write() as tx:
        rollouts.put(tx, STAGE)
        for i, user in enumerate(users):
            asks = chance.random() < 0.5
            asked(tx, f"c-{user}", user, at=100.0 + i, solicited=asks)
            did = {
                "regenerated": chance.random() < 0.4,
                "disagreed": chance.random() < 0.4,
                "edited": chance.random() < 0.4,
            }
            thumbed, up = chance.random() < 0.5, chance.random() < 0.5
            at = 100.0 + i + chance.random() * DAY
            for signal in (Signal.REGENERATED, Signal.DISAGREED):
                if did[signal.value]:
                    events += [sent(f"{signal}-{n}-{user}", f"c-{user}", user, signal, at) for n in range(2)]
            if did["edited"]:
                events.append(edit(f"e-{user}", f"c-{user}", user, f"Better, {user}.", at))
            if thumbed:
                events.append(thumb(f"f-{user}", f"c-{user}", user=user, value=up, created_at=at))
            rated = asks and (thumbed or did["edited"])
            counts = did | {"solicited": asks, "rated": rated, "rated_up": rated and up and not did["edited"]}
            arm = unit_interval(STAGE.salt, user) < STAGE.weight
            more = {"users": 1, "known": 1, "observed": 1, **{name: int(is_so) for name, is_so in counts.items()}}
            expected[arm] = replace(
                expected[arm], **{name: getattr(expected[arm], name) + by for name, by in more.items()}
            )
    chance.shuffle(events)
    while events:
        batch = [events.pop() for _ in range(min(len(events), chance.randrange(1, 6)))]
        said(store, *batch)
        with store.write() as tx:
            trials.advance(tx, STAGE, RULES, 100.0 + chance.random() * 5)
    now, before = 100.0 + DAY, 0
    while before < len(users):
        now += chance.random() * 3
        with store.write() as tx:
            trials.advance(tx, STAGE, RULES, now)
        with store.read() as tx:
            found = trials.standing(tx, STAGE)
        seen = found.champion.observed + found.challenger.observed
        assert before <= seen <= before + 4, "counts only grow"
        before = seen
    assert (found.champion, found.challenger) == (expected[False], expected[True])
    with store.read() as tx:
        assert not tx.execute(reactions.unread(STAGE, 9 * DAY)).all()


def test_an_erasure_meanwhile_counts_nobody_twice_and_leaves_no_gap(store: Store) -> None:
    if store.sqlite:
        pytest.skip("its writers are one after the other")
    with store.write() as tx:
        rollouts.put(tx, STAGE)
        for name, user in (("a", ANN), ("b", AMY), ("c", BOB)):
            asked(tx, name, user)
            judged(tx, name, user, True)
    with store.write() as tx:
        trials.advance(tx, STAGE, RULES, 100.0)

    def tick() -> None:
        with store.write() as tx:
            trials.advance(tx, STAGE, RULES, 9 * DAY)

    with ThreadPoolExecutor(1) as pool:
        with store.write() as tx:
            trials.forget(tx, ANN, "somebody")
            going_on = pool.submit(tick)  # it has read of her when this commits, and waits for it
            with pytest.raises(TimeoutError):
                going_on.result(0.5)
        going_on.result(30)
    found = told(store, 10 * DAY, RULES)
    assert (found.champion.observed, found.challenger.observed) == (1, 2) and len(found.trials) == 2
    with store.read() as tx:
        assert trials.len_of(tx, STAGE) == 2, "places are without a gap"


def test_a_read_looks_at_the_users_that_are_due_and_not_at_a_whole_test(sqlite_store: Store) -> None:
    with sqlite_store.write() as tx:
        rollouts.put(tx, STAGE)
        asked(tx, "a", ANN, solicited=True)
    said(sqlite_store, sent("s", "a", ANN), edit("e", "a", ANN))
    with sqlite_store.write() as tx:
        trials.advance(tx, STAGE, RULES, 100.0)
    asked_for = list[tuple[str, Any]]()
    with sqlite_store.write() as tx:
        sa.event.listen(tx, "before_cursor_execute", lambda _, __, sql, values, *___: asked_for.append((sql, values)))
        reactions.read(tx, STAGE, 9 * DAY)
    selects = [(sql, values) for sql, values in asked_for if sql.startswith("SELECT")]
    with sqlite_store.read() as tx:
        plans = [str(tx.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", values).all()) for sql, values in selects]
    assert len(plans) == 8 and not any("ix_completions_rollout" in plan for plan in plans), plans
    assert not any("SCAN feedback" in plan or "SCAN completions" in plan for plan in plans), plans
    assert any("ix_completions_solicited" in plan for plan in plans), plans
