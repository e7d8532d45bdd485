"""A holdback notices what wears off, and stays quiet where nothing does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kto_ray.config.deciding import RolloutSection
from kto_ray.records.rollouts import RolloutKind, RolloutState, RolloutStatus
from kto_ray.records.trials import Settled, Standing
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
        before, state = state, step(state, Standing(state.id, state.stage, trials=trials), 0.0, f"s{day}", day * DAY_S)
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
    assert step(state, Standing("h", 0, trials=some), 0.0, "new", DAY_S - 1) == state
    day = step(state, Standing("h", 0, trials=some), 0.0, "new", DAY_S)
    wanted = detector.fold(Watch(), np.array([True, False, False]), np.array([1.0, 0.0, 1.0]), 0.1)
    assert watch_of(day) == wanted and (day.salt, day.stage) == ("salt", 0)
    assert step(day, Standing("h", 0, trials=some), 0.0, "new", DAY_S + 1) == day
    again = step(day, Standing("h", 0, trials=(*some, Settled(True, 1.0))), 0.0, "new", 2 * DAY_S)
    assert watch_of(again) == detector.fold(wanted, np.array([True]), np.array([1.0]), 0.1), "only what is new"
    week = step(again, Standing("h", 0, trials=some), 0.0, "new", WEEK_S)
    assert (week.salt, week.stage, week.stage_started_at, week.weight) == ("new", 1, WEEK_S, 0.1)
    assert week.watch is not None and week.watch["folded"] == 0
    assert RolloutState(**{**{n: getattr(week, n) for n in week.__slots__}, "watch": dict(week.watch)}) == week


def test_the_share_is_of_those_whom_no_tests_challenger_answers() -> None:
    state = begun()
    quiet = step(state, Standing("h", 0, trials=(Settled(True, 1.0),)), 0.5, "new", DAY_S)
    assert watch_of(quiet) == detector.fold(Watch(), np.array([True]), np.array([1.0]), 0.1 / 0.55)


def test_more_users_are_held_back_after_a_warning_and_those_who_were_stay() -> None:
    near = replace(Watch(), log_stakes=(np.log(1000.0),) * 4)
    state = begun()
    assert state.watch is not None
    warned = replace(state, watch={**state.watch, "log_stakes": list(near.log_stakes)})
    grown = step(warned, Standing("h", 0), 0.0, "new", DAY_S)
    assert (grown.weight, grown.salt, grown.stage) == (0.5, "salt", 1) and "more users" in str(grown.reason)
