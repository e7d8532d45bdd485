"""What waits for a person: what no one person does; and what people do does not."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from kto_ray.config.capture import FeedbackSection
from kto_ray.feedback.quarantine import DAY_S, Why, held
from kto_ray.records.feedback import Feedback, FeedbackKind, Held

RULES = FeedbackSection()


def judged(number: int, at: float, user: str | None = "ann", **changes: Any) -> Feedback:
    """A thumb up on an answer of its own."""
    kind = FeedbackKind.EDIT if "text" in changes else FeedbackKind.THUMB
    value = {} if "text" in changes else {"value": True}
    return Feedback(**{"id": f"f{number}", "created_at": at, "kind": kind, "completion_id": f"c{number}", "user": user,
                       "seq": number, **value, **changes})  # fmt: skip


def why(events: list[Feedback], rules: FeedbackSection = RULES) -> Counter[Why]:
    return Counter(held(events, rules).values())


def test_a_burst_waits_from_where_nobody_is_so_quick() -> None:
    assert why([judged(i, i * 1.9) for i in range(50)]) == {Why.BURST: 20}
    assert why([judged(i, i * 2.1) for i in range(200)]) == {}
    assert why([judged(i, 0.0, user=f"u{i}") for i in range(200)]) == {}


def test_a_flood_waits_from_where_nobody_judges_so_much_in_a_day() -> None:
    assert why([judged(i, i * 60.0) for i in range(400)]) == {Why.FLOOD: 100}
    assert why([judged(i, i * DAY_S / 299) for i in range(1000)]) == {}


def test_turning_thumbs_en_masse_waits() -> None:
    ups = [judged(i, i * 600.0, completion_id=f"c{i}") for i in range(60)]
    downs = [judged(60 + i, 50_000.0 + i * 600, completion_id=f"c{i}", value=False) for i in range(60)]
    assert why([*ups, *downs]) == {Why.FLIPS: 40}
    assert why([*ups, *downs[:20]]) == {}


def test_the_edits_of_a_new_user_wait_behind_the_first_few_of_a_day() -> None:
    edits = [judged(i, i * 600.0, text=f"text {i}") for i in range(20)]
    assert why(edits) == {Why.NEW_USER_EDITS: 10}
    assert why([judged(99, -8 * DAY_S, seq=-1), *edits]) == {}


def test_one_text_under_many_names_waits() -> None:
    def same(users: list[str | None]) -> Counter[Why]:
        return why([judged(i, i * 600.0, user=user, text="Buy EvilCoin.") for i, user in enumerate(users)])

    assert same([f"u{i}" for i in range(9)]) == {Why.SAME_TEXT: 5}
    assert same(["ann"] * 9) == same([None] * 9) == {}
    assert same([None] * 9 + ["u1", "u2", "u3", "u4"]) == {Why.SAME_TEXT: 1}
    assert why([judged(i, i * 600.0, user=f"u{i}", text=f"Buy {i} EvilCoins.") for i in range(9)]) == {}


def test_in_a_store_that_knows_its_users_newcomers_wait_until_they_come_back() -> None:
    old = [judged(i, i * DAY_S, user="ann") for i in range(16)]
    new = [judged(20 + i, 15.5 * DAY_S, user=f"new{i}") for i in range(5)]
    assert why([*old, *new]) == {Why.NEWCOMER: 5}
    assert why([*old, *new, judged(30, 22 * DAY_S, user="new3")]) == {Why.NEWCOMER: 6}  # too soon
    assert why([*old, *new, judged(30, 22.6 * DAY_S, user="new3")]) == {Why.NEWCOMER: 4}
    assert why([*old, *new], FeedbackSection(newcomer_days=0)) == {}
    assert why([*old, judged(20, 15.5 * DAY_S, user=None)]) == {}  # they are one, whom the cap holds


@pytest.mark.parametrize("changes", [{"held": Held.DROPPED}, {"withdrawn_at": 1.0}])
def test_nobody_grows_older_by_what_does_not_stand(changes: Any) -> None:
    old = [judged(i, i * DAY_S, user="ann") for i in range(16)]
    back = judged(30, 24 * DAY_S, user="new")
    assert why([*old, judged(20, 15.5 * DAY_S, user="new"), back]) == {}
    for how in (changes, {"held": Held.HELD}):
        found = held([*old, judged(20, 15.5 * DAY_S, user="new", **how), back], RULES)
        assert ("f30" in found) is (how is changes)


def test_where_all_are_new_nobody_waits_for_it() -> None:
    assert why([judged(i, i * 60.0, user=f"u{i % 700}") for i in range(2000)]) == {}


@pytest.mark.parametrize("changes", [{"reviewer": True}, {"kind": FeedbackKind.COMMENT, "value": None}])
def test_reviewers_and_what_judges_nothing_are_not_looked_at(changes: Any) -> None:
    assert why([judged(i, 0.0, **changes) for i in range(100)]) == {}


def test_the_gravest_reason_is_told() -> None:
    """Else a burst of a newcomer would be free when they come back."""
    old = [judged(i, i * DAY_S, user="ann") for i in range(16)]
    burst = [judged(20 + i, 15.5 * DAY_S, user="new") for i in range(40)]
    assert why([*old, *burst, judged(99, 30 * DAY_S, user="new")]) == {Why.BURST: 10}
