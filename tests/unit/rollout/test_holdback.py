"""A holdback notices what wears off, and stays quiet where nothing does."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest

from kto_ray.config.deciding import RolloutSection
from kto_ray.records.rollouts import RolloutKind, RolloutState, RolloutStatus
from kto_ray.records.trials import Settled, Standing
from kto_ray.records.users import unit_interval
from kto_ray.rollout.holdback import DAY_S, WEEK_S, start, step, watch_of
from kto_ray.stats import detector
from kto_ray.stats.detector import Watch

RULES = RolloutSection()
NEW, OLD = "policy@v2-bbbbbb", "policy@v1-aaaaaa"


def begun() -> RolloutState:
    found = start(RULES, NEW, OLD, "holdback-2", "salt", 0.0)
    assert found is not None
    return found


def test_it_starts_with_the_rules_share_or_not_at_all() -> None:
    state = begun()
    assert (state.kind, state.champion, state.challenger, state.weight) == (RolloutKind.HOLDBACK, NEW, OLD, 0.1)
    assert watch_of(state) == Watch()
    assert start(RULES.model_copy(update={"holdback": 0.0}), NEW, OLD, "h", "salt", 0.0) is None


def lived(state: RolloutState, days: int, voters: int, old: float, new: float, seed: int) -> tuple[RolloutState, int]:
    """Days of trials, until it ends; and how many days that took."""
    random = np.random.default_rng(seed)
    trials: tuple[Settled, ...] = ()
    for day in range(1, days + 1):
        back = random.random(voters) < state.weight
        up = random.random(voters) < np.where(back, old, new)
        trials += tuple(Settled(bool(b), float(u)) for b, u in zip(back, up, strict=True))
        before, state = state, step(state, Standing(state.id, state.stage, trials=trials), f"s{day}", day * DAY_S)
        if state.stage != before.stage:
            trials = ()
        if not state.live:
            return state, day
    return state, days


def test_a_champion_that_wears_off_is_rolled_back() -> None:
    ended = [lived(begun(), 60, 300, old=0.6, new=0.45, seed=seed) for seed in range(10)]
    assert all(state.status is RolloutStatus.PROMOTED for state, _ in ended)
    assert 4 <= np.median([day for _, day in ended]) <= 25
    state = ended[0][0]
    assert state.reason is not None and state.reason.startswith(f"{OLD} is better after all than {NEW}")
    assert state.weight == 0.5, "a warning came first, and more users were held back"


@pytest.mark.parametrize(("old", "new"), [(0.6, 0.6), (0.5, 0.6)])
def test_one_that_is_as_good_or_better_stays(old: float, new: float) -> None:
    assert all(lived(begun(), 60, 300, old, new, seed)[0].live for seed in range(10))


def test_a_day_is_folded_once_and_a_week_draws_others() -> None:
    state, some = begun(), (Settled(True, 1.0), Settled(False, 0.0), Settled(False, 1.0))
    assert step(state, Standing("h", 0, trials=some), "new", DAY_S - 1) == state
    day = step(state, Standing("h", 0, trials=some), "new", DAY_S)
    wanted = detector.fold(Watch(), np.array([True, False, False]), np.array([1.0, 0.0, 1.0]), 0.1)
    assert watch_of(day) == wanted and (day.salt, day.stage) == ("salt", 0)
    assert step(day, Standing("h", 0, trials=some), "new", DAY_S + 1) == day
    again = step(day, Standing("h", 0, trials=(*some, Settled(True, 1.0))), "new", 2 * DAY_S)
    assert watch_of(again) == detector.fold(wanted, np.array([True]), np.array([1.0]), 0.1), "only what is new"
    week = step(again, Standing("h", 0, trials=some), "new", WEEK_S)
    assert (week.salt, week.stage, week.stage_started_at, week.weight) == ("new", 1, WEEK_S, 0.1)
    assert week.watch is not None and week.watch["folded"] == 0
    assert RolloutState(**{**{n: getattr(week, n) for n in week.__slots__}, "watch": dict(week.watch)}) == week


def at_stake(state: RolloutState, stake: float) -> RolloutState:
    assert state.watch is not None
    return replace(state, watch={**state.watch, "log_stakes": [float(np.log(stake))] * 4})


def test_more_users_are_held_back_after_a_warning_and_all_are_drawn_anew() -> None:
    grown = step(at_stake(begun(), 1000.0), Standing("h", 0), "new", DAY_S)
    assert (grown.weight, grown.salt, grown.stage) == (0.5, "new", 1) and "more users" in str(grown.reason)


def test_a_warning_that_passes_gives_the_users_back_at_the_next_draw() -> None:
    grown = step(at_stake(begun(), 1000.0), Standing("h", 0), "new", DAY_S)
    quiet = step(at_stake(grown, 10.0), Standing("h", 1), "other", 2 * DAY_S)
    assert (quiet.weight, quiet.salt) == (0.5, "new"), "not within a week"
    week = step(quiet, Standing("h", 1), "week", DAY_S + WEEK_S)
    assert (week.weight, week.salt, week.stage) == (0.1, "week", 2) and "fewer users" in str(week.reason)
    still = step(at_stake(quiet, 1000.0), Standing("h", 1), "week", DAY_S + WEEK_S)
    assert (still.weight, still.salt, still.stage) == (0.5, "week", 2) and "more users" in str(still.reason)


def test_a_week_that_ends_within_a_test_goes_on_until_that_has_ended() -> None:
    state, some = begun(), (Settled(True, 1.0), Settled(False, 0.0))
    within = step(state, Standing("h", 0, trials=some), "new", WEEK_S, in_test=True)
    assert (within.salt, within.stage) == ("salt", 0) and watch_of(within).days == 1, "its trials count all the same"
    assert step(within, Standing("h", 0, trials=some), "new", WEEK_S + 1, in_test=True) == within
    more = (*some, Settled(True, 0.0))
    after = step(within, Standing("h", 0, trials=more), "new", WEEK_S + 60)
    assert (after.salt, after.stage, after.stage_started_at) == ("new", 1, WEEK_S + 60), "at once, within the day"
    assert watch_of(after) == detector.fold(watch_of(within), np.array([True]), np.array([0.0]), 0.1), "nothing is lost"


def test_a_warning_draws_others_within_a_test_too() -> None:
    grown = step(at_stake(begun(), 1000.0), Standing("h", 0), "new", DAY_S, in_test=True)
    week = step(grown, Standing("h", 1), "week", DAY_S + WEEK_S, in_test=True)
    assert (grown.salt, grown.weight, week.salt, week.weight) == ("new", 0.5, "week", 0.5)
    quiet = step(at_stake(grown, 10.0), Standing("h", 1), "week", DAY_S + WEEK_S, in_test=True)
    assert (quiet.salt, quiet.weight) == ("week", 0.1), "and gives the users back"


def lucky(seed: int, people: int = 150) -> RolloutState | None:
    """The holdback of a clone within two weeks of a warning, None where there is none in 60 days. Each of its people
    keeps an opinion and comes once a week, and it begins near a warning, as after a lucky while."""
    random = np.random.default_rng(seed)
    opinion = (random.random(people) < 0.5).astype(float)
    near = Watch((float(np.log(150.0)),) * 4, weight=0.1, trials=1000.0, holdback=100.0, outcomes=500.0)
    state = replace(begun(), salt=f"s{seed}", watch={**asdict(near), "folded": 0, "at": 0.0})
    drawn, since, warned = (-1, ""), 0, None
    trials: tuple[Settled, ...] = ()
    for day in range(60):
        if drawn != (state.stage, state.salt):
            drawn, since, trials = (state.stage, state.salt), day, ()
            held = np.array([unit_interval(state.salt, f"{seed}-{i}") for i in range(people)]) < state.weight
            comes = random.integers(0, 7, people)
        today = np.flatnonzero(comes == day - since)
        trials += tuple(Settled(bool(held[i]), float(opinion[i])) for i in today)
        state = step(state, Standing(state.id, state.stage, trials=trials), f"s{seed}-{day}", (day + 1) * DAY_S)
        warned = day if warned is None and state.weight == 0.5 else warned
        if not state.live or (warned is not None and day > warned + 14):
            return state if warned is not None else None
    return None


def test_the_same_chance_is_not_counted_twice_where_users_come_again() -> None:
    """A clone's warnings seldom become alarms: for that the evidence has to grow tenfold. Where a growing share
    keeps the users that it has, what brought the warning is counted again."""
    after = [state for state in map(lucky, range(400)) if state is not None]
    alarms = np.mean([state.status is RolloutStatus.PROMOTED for state in after])
    assert len(after) > 100 and 0.005 < alarms < 0.05


def test_a_clock_that_was_wrong_once_stops_nothing() -> None:
    some = (Settled(True, 1.0), Settled(False, 0.0))
    ahead = step(begun(), Standing("h", 0, trials=some), "new", 400 * DAY_S)
    assert (ahead.stage, ahead.stage_started_at) == (1, 400 * DAY_S)
    back = step(ahead, Standing("h", 1, trials=some), "again", DAY_S)
    assert watch_of(back).trials > watch_of(ahead).trials
    assert (back.stage, back.stage_started_at, back.salt) == (2, DAY_S, "again")
    assert step(back, Standing("h", 2), "no", 2 * DAY_S - 1) == back, "and a day is a day again"
    assert step(ahead, Standing("h", 1), "again", DAY_S, in_test=True).salt == "again", "within a test, too"
