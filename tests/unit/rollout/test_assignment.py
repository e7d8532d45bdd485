"""Routing: sticky, monotone in the weight, uniform; names resolve or say what would."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kto_ray.config.deciding import RolloutSection
from kto_ray.records.completions import Arm
from kto_ray.records.conversations import Conversation
from kto_ray.records.rollouts import RolloutKind, RolloutState, RolloutStatus
from kto_ray.records.trials import Standing
from kto_ray.records.users import unit_interval
from kto_ray.rollout import base as on_base
from kto_ray.rollout import holdback as held_back
from kto_ray.rollout.assignment import Route, UnknownModel, beside, go_on, route, splits, uncounted

CHAMPION, CHALLENGER, BASE = "policy@v1-aaaaaa", "policy@v2-bbbbbb", "policy@base"
ALIASES = {"champion": CHAMPION, "challenger": CHALLENGER, "previous": BASE}
HELD = {CHAMPION, CHALLENGER, BASE}
ROLLOUT = RolloutState("r1", CHAMPION, CHALLENGER, "salt", 0, 0.1, RolloutStatus.RUNNING, 0.0, 0.0)

names = st.text(max_size=40)


def ask(model: str, user: str | None = "u", rollout: RolloutState | None = ROLLOUT, held: set[str] = HELD) -> Route:
    return route(model, user, "policy", ALIASES, rollout, held)


def test_unit_interval_is_pinned_to_known_values() -> None:
    """A change of the hash would silently move running users between arms."""
    assert unit_interval("salt", "alice") == pytest.approx(0.8609348605, abs=1e-9)


def test_unit_interval_is_uniform_and_salts_are_independent() -> None:
    a = [unit_interval("one", f"user-{i}") for i in range(20_000)]
    b = [unit_interval("two", f"user-{i}") for i in range(20_000)]
    for tenth in range(10):
        share = sum(tenth / 10 <= x < (tenth + 1) / 10 for x in a) / len(a)
        assert abs(share - 0.1) < 0.01
    both = sum(x < 0.5 and y < 0.5 for x, y in zip(a, b, strict=True)) / len(a)
    assert abs(both - 0.25) < 0.015


@given(names, names, st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_a_growing_weight_only_moves_users_to_the_challenger(salt: str, user: str, one: float, two: float) -> None:
    small, big = sorted((one, two))
    before = ask("policy", user, replace(ROLLOUT, salt=salt, weight=small))
    after = ask("policy", user, replace(ROLLOUT, salt=salt, weight=big))
    assert before == ask("policy", user, replace(ROLLOUT, salt=salt, weight=small))
    if before.arm is Arm.CHALLENGER:
        assert after == before


def test_the_weight_is_the_challengers_share() -> None:
    arms = [ask("policy", f"user-{i}").arm for i in range(20_000)]
    assert abs(arms.count(Arm.CHALLENGER) / len(arms) - 0.1) < 0.01


def user_on(arm: Arm) -> str:
    return next(f"user-{i}" for i in range(1000) if ask("policy", f"user-{i}").arm is arm)


def test_arms_carry_the_rollout_and_its_adapters() -> None:
    assert ask("policy", user_on(Arm.CHALLENGER)) == Route(CHALLENGER, Arm.CHALLENGER, "r1")
    assert ask("policy", user_on(Arm.CHAMPION)) == Route(CHAMPION, Arm.CHAMPION, "r1")


def test_pausing_moves_nobody() -> None:
    paused = replace(ROLLOUT, status=RolloutStatus.PAUSED)
    for i in range(200):
        assert ask("policy", f"user-{i}", paused) == ask("policy", f"user-{i}")


@pytest.mark.parametrize("status", [RolloutStatus.PROMOTED, RolloutStatus.ABORTED])
def test_an_ended_rollout_is_over(status: RolloutStatus) -> None:
    ended = replace(ROLLOUT, status=status)
    assert ask("policy", user_on(Arm.CHALLENGER), ended) == Route(CHAMPION, Arm.CHAMPION)


def test_without_rollout_or_user_the_champion_answers_and_nothing_counts() -> None:
    assert ask("policy", "u", None) == Route(CHAMPION, Arm.CHAMPION)
    assert ask("policy", None, replace(ROLLOUT, weight=0.99)) == Route(CHAMPION, Arm.CHAMPION)


def test_a_rollout_against_another_champion_is_stale() -> None:
    stale = replace(ROLLOUT, champion="policy@v0-cccccc")
    assert ask("policy", user_on(Arm.CHALLENGER), stale) == Route(CHAMPION, Arm.CHAMPION)


def test_a_challenger_that_is_not_held_costs_no_request_and_does_not_count() -> None:
    assert ask("policy", user_on(Arm.CHALLENGER), held={CHAMPION, BASE}) == Route(CHAMPION, Arm.PINNED)


def test_while_the_challenger_is_not_held_nobody_counts_and_the_split_stays_as_drawn() -> None:
    evenly = replace(ROLLOUT, weight=0.5)
    moments = [(f"user-{i}", HELD if i % 5 else {CHAMPION, BASE}) for i in range(6000)]
    counted = [found for user, held in moments if (found := ask("policy", user, evenly, held)).rollout]
    assert len(counted) == 4800
    assert abs(sum(found.arm is Arm.CHALLENGER for found in counted) - 2400) < 4 * 35, "four standard errors"


@pytest.mark.parametrize(
    ("model", "adapter"),
    [
        ("policy@champion", CHAMPION),
        ("policy@challenger", CHALLENGER),
        ("policy@previous", BASE),
        ("policy@base", BASE),
        (CHALLENGER, CHALLENGER),
    ],
)
def test_named_versions_are_pinned(model: str, adapter: str) -> None:
    assert ask(model) == Route(adapter, Arm.PINNED)


@pytest.mark.parametrize("model", ["gpt-4", "policy@v9-zzzzzz", "policy@", "", "other@champion", "policyX"])
def test_unknown_models_are_told_what_there_is(model: str) -> None:
    with pytest.raises(UnknownModel) as error:
        ask(model)
    assert repr(model) in str(error.value)
    for known in ("policy,", "policy@champion", CHALLENGER, BASE):
        assert known in str(error.value)


def test_without_a_rollout_there_is_no_challenger_alias() -> None:
    with pytest.raises(UnknownModel):
        route("policy@challenger", "u", "policy", {"champion": BASE}, None, {BASE})


HOLDBACK = RolloutState("h1", CHAMPION, "policy@v0", "other", 0, 0.3, RolloutStatus.RUNNING, 0.0, 0.0)


@pytest.mark.parametrize("test", [None, replace(ROLLOUT, weight=0.5)])
def test_who_is_held_back_is_in_no_test_and_all_others_of_the_champion_are_the_other_arm(
    test: RolloutState | None,
) -> None:
    held = {CHAMPION, CHALLENGER, "policy@v0"}
    routes = {
        u: route("policy", u, "policy", {"champion": CHAMPION}, test, held, HOLDBACK) for u in map(str, range(2000))
    }
    for user, found in routes.items():
        back = unit_interval("other", user) < 0.3
        assert (found.arm is Arm.HOLDBACK) is back
        if back:
            met = test is not None and unit_interval(test.salt, user) < test.weight
            assert (found.adapter, found.rollout, found.holdback) == ("policy@v0", None, None if met else "h1")
        elif found.arm is Arm.CHALLENGER:
            assert (found.adapter, found.holdback) == (CHALLENGER, None)
        else:
            assert (found.adapter, found.holdback) == (CHAMPION, "h1")
    tested = sum(found.arm is Arm.CHALLENGER for found in routes.values())
    assert (tested == 0) if test is None else (600 < tested < 800), "half of all others"


def test_a_holdback_is_ignored_where_it_does_not_fit() -> None:
    def arm(champion: str, user: str | None, held: set[str]) -> Route:
        return route("policy", user, "policy", {"champion": champion}, None, held, HOLDBACK)

    back = next(u for u in map(str, range(99)) if unit_interval("other", u) < 0.3)
    assert arm(CHAMPION, back, {"policy@v0"}).arm is Arm.HOLDBACK
    for found in (
        arm("policy@v9", back, {"policy@v0"}),
        arm(CHAMPION, back, set()),
        arm(CHAMPION, None, {"policy@v0"}),
    ):
        assert (found.arm, found.holdback) == (Arm.CHAMPION, None)


STAGE = replace(ROLLOUT, stage=1, weight=0.5, stage_started_at=100.0)
WEEK = replace(HOLDBACK, challenger=BASE, stage_started_at=100.0)


def turn(user: str, before: Conversation, test: RolloutState | None = STAGE, back: RolloutState | None = None) -> Route:
    drawn = route("policy", user, "policy", ALIASES, test, HELD, back)
    return go_on(drawn, before, CHAMPION, test, back, HELD)


@given(names, st.sampled_from([CHAMPION, CHALLENGER]), st.sampled_from([None, "r1"]))
def test_going_on_with_a_conversation_of_before_the_stage_counts_in_no_arm(
    user: str, answered: str, counted: str | None
) -> None:
    found = turn(user, Conversation(99.0, answered, counted))
    assert (found.adapter, found.rollout) == (answered, None)
    assert turn(user, Conversation(99.0, answered, counted, "h1"), STAGE, WEEK).holdback is None


@given(names)
def test_a_conversation_of_the_stage_counts_as_its_first_answer_did(user: str) -> None:
    first = route("policy", user, "policy", ALIASES, STAGE, HELD, WEEK)
    assert turn(user, Conversation(100.0, first.adapter, first.rollout, first.holdback), STAGE, WEEK) == first
    assert turn(user, Conversation(100.0, first.adapter), STAGE, WEEK) == uncounted(first), "nor did that one"
    assert turn(user, Conversation(100.0, first.adapter, "r0", "h0"), STAGE, WEEK) == uncounted(first)


@pytest.mark.parametrize(
    ("answered", "test", "back", "arm"),
    [
        (CHAMPION, STAGE, None, Arm.CHAMPION),
        (CHALLENGER, STAGE, None, Arm.CHALLENGER),
        (CHALLENGER, replace(STAGE, status=RolloutStatus.PAUSED), None, Arm.CHALLENGER),
        (CHALLENGER, replace(STAGE, status=RolloutStatus.ABORTED), None, None),
        (CHALLENGER, replace(STAGE, champion=BASE), None, None),
        (BASE, STAGE, None, None),
        (BASE, STAGE, WEEK, Arm.HOLDBACK),
        (BASE, None, WEEK, Arm.HOLDBACK),
        (BASE, None, replace(WEEK, champion="policy@v9"), None),
        ("policy@v0", STAGE, WEEK, None),
    ],
)
def test_a_conversation_keeps_a_version_that_takes_part(
    answered: str, test: RolloutState | None, back: RolloutState | None, arm: Arm | None
) -> None:
    for user in map(str, range(20)):
        drawn = uncounted(route("policy", user, "policy", ALIASES, test, HELD, back))
        expected = drawn if arm is None else Route(answered, arm)
        assert turn(user, Conversation(99.0, answered), test, back) == expected


def test_a_version_that_is_not_held_any_more_loses_its_conversations() -> None:
    drawn, held = Route(CHAMPION, Arm.CHAMPION), {CHAMPION, BASE}
    assert go_on(drawn, Conversation(99.0, CHALLENGER), CHAMPION, STAGE, None, held) == drawn


def test_conversations_matter_only_while_users_are_split() -> None:
    assert splits(CHAMPION, STAGE, None) and splits(CHAMPION, None, WEEK)
    ended = replace(STAGE, status=RolloutStatus.ABORTED)
    assert not any(splits(CHAMPION, test, None) for test in (None, ended, replace(STAGE, champion=BASE)))


def test_a_test_that_has_not_begun_splits_nobody() -> None:
    asks = replace(ROLLOUT, weight=0.0, status=RolloutStatus.PAUSED)
    assert not splits(CHAMPION, asks)
    assert all(ask("policy", user, asks) == Route(CHAMPION, Arm.CHAMPION) for user in map(str, range(99)))


FOR_EVER = RolloutState(
    "b1", "policy@champion", BASE, "third", 0, 0.05, RolloutStatus.RUNNING, 0.0, 100.0, kind=RolloutKind.BASE
)
OLDER = replace(HOLDBACK, stage_started_at=100.0)
ALL_HELD = {CHAMPION, CHALLENGER, "policy@v0", BASE}


def measured(user: str | None, champion: str = CHAMPION, base: RolloutState | None = FOR_EVER) -> Route:
    return route("policy", user, "policy", {**ALIASES, "champion": champion}, STAGE, ALL_HELD, OLDER, base)


@given(names, st.text(max_size=9), st.floats(0.001, 0.2))
def test_who_is_on_the_base_is_in_nothing_else_and_who_is_not_is_answered_as_without_it(
    user: str, salt: str, share: float
) -> None:
    base = replace(FOR_EVER, salt=salt, weight=share)
    place, without = unit_interval(salt, user), measured(user, base=None)
    found = measured(user, base=base)
    if place < share:
        assert found == Route(BASE, Arm.HOLDBACK, None, "b1" if without.arm is Arm.CHAMPION else None)
    else:
        counted = "b1" if without.arm is Arm.CHAMPION else None
        compared = place < share + beside(share)
        assert found == (replace(without, holdback=counted) if compared else without), "it leaves no test for it"


def test_the_draws_are_independent_and_each_holdback_has_another_arm() -> None:
    found = [measured(f"user-{i}") for i in range(20_000)]
    named = [(one.arm, one.holdback) for one in found]
    assert abs(sum(one.adapter == BASE for one in found) / 20_000 - 0.05) < 0.006
    assert abs(named.count((Arm.HOLDBACK, "b1")) / 20_000 - 0.05 * 0.7 * 0.5) < 0.006, "whom else the champion answered"
    held, free = (named.count((arm, "h1")) for arm in (Arm.HOLDBACK, Arm.CHAMPION))
    assert abs(held / 20_000 - 0.5 * 0.3 * 0.5) < 0.012, "outside the slice, and whom else the champion answered"
    assert abs(named.count((Arm.CHAMPION, "b1")) / 20_000 - 0.45 * 0.7 * 0.5) < 0.012, "of a slice, the champion's"
    assert abs(free / 20_000 - 0.5 * 0.7 * 0.5) < 0.013
    on_test = [one for one in found if one.rollout is not None]
    assert abs(sum(one.arm is Arm.CHALLENGER for one in on_test) / len(on_test) - 0.5) < 0.02, "the test's split stays"
    assert [beside(0.01), beside(0.2)] == pytest.approx([0.09, 0.4])


@given(names, st.text(max_size=9), st.text(max_size=9), st.floats(0.01, 0.99))
def test_whether_a_user_counts_does_not_hang_on_the_arm(user: str, one: str, other: str, weight: float) -> None:
    """Or who comes often would be more often in one arm than in the other, as tests begin, grow and end: each user
    counts once in a draw, when they first come."""
    test = replace(STAGE, weight=weight)

    tested, place = unit_interval(test.salt, user) < weight, unit_interval(FOR_EVER.salt, user)
    for salt in (one, other):
        back = replace(OLDER, salt=salt)
        found = route("policy", user, "policy", ALIASES, test, ALL_HELD, back, FOR_EVER)
        if place < FOR_EVER.weight + beside(FOR_EVER.weight):
            is_back = unit_interval(salt, user) < back.weight
            assert found.holdback == (None if tested or is_back else "b1")
        else:
            assert found.holdback == (None if tested else "h1")


def test_the_base_is_compared_with_whatever_is_champion_but_itself() -> None:
    there = next(u for u in map(str, range(999)) if unit_interval("third", u) < 0.05)
    assert measured(there, CHALLENGER).arm is Arm.HOLDBACK and measured(there, "policy@v0").arm is Arm.HOLDBACK
    assert splits(CHALLENGER, None, None, FOR_EVER) and not splits(BASE, None, None, FOR_EVER)
    for found in (measured(there, BASE), measured(None)):
        assert found.holdback != "b1" and found.arm is not Arm.HOLDBACK
    assert measured(there, base=replace(FOR_EVER, status=RolloutStatus.ABORTED)) == measured(there, base=None)


@given(names)
def test_a_conversation_keeps_the_base_and_counts_where_it_began_there(user: str) -> None:
    def goes_on(before: Conversation) -> Route:
        return go_on(first, before, CHAMPION, STAGE, OLDER, ALL_HELD, FOR_EVER)

    first = measured(user)
    assert goes_on(Conversation(100.0, first.adapter, first.rollout, first.holdback)) == first
    assert goes_on(Conversation(99.0, first.adapter, first.rollout, first.holdback)) == uncounted(first)
    old = goes_on(Conversation(99.0, BASE, None, "b1"))
    assert (old.adapter, old.rollout, old.holdback, old.arm) == (BASE, None, None, Arm.HOLDBACK)


STAFF = {"alice": "challenger", "app/*": "previous", "app/bob": "base", "carol": "policy@v9-gone", "dan": CHALLENGER}


@pytest.mark.parametrize(
    ("user", "adapter"),
    [
        ("alice", CHALLENGER),
        ("app/eve", "policy@v0"),
        ("app/bob", BASE),
        ("dan", CHALLENGER),
        ("carol", CHAMPION),  # which is not servable
    ],
)
def test_staff_get_what_is_named_for_them_and_count_nowhere(user: str, adapter: str) -> None:
    aliases = {"champion": CHAMPION, "challenger": CHALLENGER, "previous": "policy@v0"}
    for salt in map(str, range(20)):
        states = (replace(STAGE, salt=salt), ALL_HELD, OLDER, replace(FOR_EVER, salt=salt))
        assert route("policy", user, "policy", aliases, *states, STAFF) == Route(adapter, Arm.PINNED)
    assert route("policy@base", user, "policy", aliases, *states, STAFF) == Route(BASE, Arm.PINNED), "who names one"


def test_staff_meet_no_candidate_before_it_has_passed_the_gate() -> None:
    aliases = {"champion": CHAMPION, "challenger": CHALLENGER}  # it loads, or waits for approval
    for test in (None, replace(STAGE, weight=0.0)):
        assert route("policy", "alice", "policy", aliases, test, ALL_HELD, staff=STAFF) == Route(CHAMPION, Arm.PINNED)


def test_staff_without_a_challenger_get_the_champion_and_others_are_no_staff() -> None:
    alone = route("policy", "alice", "policy", {"champion": CHAMPION}, None, HELD, None, None, STAFF)
    assert alone == Route(CHAMPION, Arm.PINNED)
    for user in ("alice/b", "app", "apple/eve", None):
        assert route("policy", user, "policy", ALIASES, STAGE, HELD, staff=STAFF) == ask("policy", user, STAGE)


def test_within_a_test_a_user_changes_versions_once_at_most_whatever_holdbacks_there_are() -> None:
    """Weeks of both holdbacks end within a test of twelve days whose weight grows; between tests they draw anew."""
    rules, day_s = RolloutSection(base_holdback=0.05), 86_400.0
    back = held_back.start(rules, CHAMPION, "policy@v0-cccccc", "h1", "h", 0.0)
    base = on_base.start(rules, BASE, "b1", "b", 0.0)
    assert back is not None and base is not None
    users, weights = [f"user-{i}" for i in range(2_000)], {3: 0.1, 5: 0.3, 8: 0.5}  # from which day on
    held, test, versions = {*HELD, "policy@v0-cccccc"}, replace(ROLLOUT, weight=0.0), list[list[str]]()
    for day in range(2, 16):
        test = replace(test, weight=weights.get(day, test.weight))
        in_test, now = test.weight > 0, day * day_s
        back = held_back.step(back, Standing("h1", back.stage), f"h-{day}", now, in_test)
        base = on_base.step(rules, base, Standing("b1", base.stage), f"b-{day}", now, in_test)
        versions.append([route("policy", u, "policy", ALIASES, test, held, back, base).adapter for u in users])
    moves = [sum(a != b for a, b in pairwise(of_user)) for of_user in zip(*versions, strict=True)]
    assert max(moves) == 1 and 0.3 < sum(moves) / len(users) < 0.5, "half of those whom nobody holds back"
    back = held_back.step(back, Standing("h1", back.stage), "new", 15 * day_s + 60)
    base = on_base.step(rules, base, Standing("b1", base.stage), "new too", 15 * day_s + 60)
    assert (back.stage, base.stage, back.salt, base.salt) == (1, 1, "new", "new too"), "once the test has ended"
