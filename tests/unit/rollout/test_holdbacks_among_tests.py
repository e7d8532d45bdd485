"""Holdbacks while tests come and go, with people who differ: half come nearly every day, half seldom, and they judge
otherwise. Each counts once in a draw, so who is counted when must not hang on the arm."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kto_ray.config.deciding import RolloutSection
from kto_ray.records.rollouts import RolloutState, RolloutStatus
from kto_ray.records.trials import Settled, Standing
from kto_ray.rollout import base, holdback
from kto_ray.rollout.assignment import route
from kto_ray.stats import strata

CHAMPION, OLD, NEXT, BASE = "policy@v2-bbbbbb", "policy@v1-aaaaaa", "policy@v3-cccccc", "policy@base"
ALIASES, HELD = {"champion": CHAMPION}, {CHAMPION, OLD, NEXT, BASE}
TEST = RolloutState("r", CHAMPION, NEXT, "test", 1, 0.5, RolloutStatus.RUNNING, 0.0, 0.0)
DAY_S = holdback.DAY_S
NEVER = 10_000  # days between tests


class People:
    """Who come, and what they say: regulars and rare ones, half and half.

    Args:
        rates: of thumbs-up, the regulars' and the others'.
        judges: of those who come for the first time in a draw, the share that judges.
    """

    def __init__(self, number: int, rates: tuple[float, float], judges: float, seed: int) -> None:
        self.names = [f"{seed}-{i}" for i in range(number)]
        self.random = np.random.default_rng(seed)
        regular = self.random.random(number) < 0.5
        self.comes, self.rate = np.where(regular, 0.9, 0.05), np.where(regular, *rates)
        self.judges, self.came = judges, np.zeros(number, dtype=bool)

    def draw(self, test: RolloutState | None, *states: RolloutState) -> None:
        """Route all by these: `there` are those of the holdback that the last state is, `counted` those of its arms."""
        back, on_base = states if len(states) == 2 else (states[0], None)
        found = [route("policy", name, "policy", ALIASES, test, HELD, back, on_base) for name in self.names]
        self.counted = np.array([one.holdback == states[-1].id for one in found])
        self.there = np.array([one.adapter == states[-1].challenger for one in found])

    def day(self, fall: float = 0.0) -> list[Settled]:
        """Of those who count, and come for the first time in this draw."""
        new = (self.random.random(len(self.names)) < self.comes) & self.counted & ~self.came
        self.came |= new
        judge = np.flatnonzero(new & (self.random.random(len(self.names)) < self.judges))
        up = self.random.random(len(judge)) < self.rate[judge] - np.where(self.there[judge], 0.0, fall)
        return [Settled(bool(there), float(u)) for there, u in zip(self.there[judge], up, strict=True)]


def one_of(day: int, gap: int, length: int) -> RolloutState | None:
    """The test of that day, each with a salt of its own."""
    number, phase = divmod(day, gap + length)
    return replace(TEST, salt=f"test-{number}") if phase >= gap else None


def watched(fall: float, gap: int, length: int, seed: int, days: int = 300) -> int | None:
    """The day of the holdback's alarm."""
    people = People(2500, (0.5, 0.8), 0.3, seed)
    state = holdback.start(RolloutSection(), CHAMPION, OLD, "h", f"h{seed}", 0.0)
    assert state is not None
    trials, test = list[Settled](), None
    people.draw(None, state)
    for day in range(1, days):
        now = one_of(day, gap, length)
        standing = Standing("h", state.stage, trials=tuple(trials))
        after = holdback.step(state, standing, f"h{seed}-{day}", day * DAY_S, now is not None)
        if not after.live:
            return day
        if after.salt != state.salt:
            people.came[:], trials = False, []
        if after.salt != state.salt or now != test:
            people.draw(now, after)
        state, test = after, now
        trials += people.day(fall)
    return None


def test_people_who_differ_are_no_fall() -> None:
    """Where those of a test's challenger counted in one arm alone, one life in seven of these had an alarm."""
    assert [watched(0.0, 1, 5, seed, days=150) for seed in range(3)] == [None] * 3


def test_a_fall_is_seen_among_tests_too() -> None:
    without, among = (np.median([watched(0.1, gap, 14, seed) or 300 for seed in range(5)]) for gap in (NEVER, 3))
    assert 20 < without < among < 100, "and later, for fewer count"


@pytest.mark.parametrize(("gap", "length"), [(3, 14), (1, 5)])
def test_the_gain_over_the_base_is_not_that_other_people_were_asked(gap: int, length: int) -> None:
    """Nobody is answered better. Where the challenger's users counted on the base model alone, it was +0.03."""
    rules = RolloutSection(base_holdback=0.05)
    people = People(6000, (0.7, 0.4), 0.5, 1)
    state = base.start(rules, BASE, "b", "b", 0.0)
    back = holdback.start(rules, CHAMPION, OLD, "h", "h", 0.0)
    assert state is not None and back is not None
    trials, test = list[Settled](), None
    people.draw(None, back, state)
    for day in range(1, 340):
        now = one_of(day, gap, length)
        standing = Standing("b", state.stage, trials=tuple(trials))
        after = base.step(rules, state, standing, f"b-{day}", day * DAY_S, now is not None)
        if after.salt != state.salt:
            people.came[:], trials = False, []
        if after.salt != state.salt or now != test:
            people.draw(now, back, after)
        state, test = after, now
        trials += people.day()
    sums = base.sums_of(state)
    low, high = strata.interval(sums, base.ALPHA)
    assert sums.strata >= 19 and low < 0 < high and sums.mean is not None
    assert abs(sums.mean) < 0.015
