"""The holdback on the base model: weeks that are over add up, each drawn anew."""

from __future__ import annotations

from kto_ray.config.deciding import RolloutSection
from kto_ray.records.rollouts import RolloutState
from kto_ray.records.trials import Settled, Standing
from kto_ray.rollout import base
from kto_ray.rollout.holdback import WEEK_S

RULES = RolloutSection()
WEEK = (*[Settled(False, 1.0)] * 6, *[Settled(False, 0.0)] * 3, *[Settled(True, 0.5)] * 3)


def begun(rules: RolloutSection = RULES) -> RolloutState:
    state = base.start(rules, "policy@base", "base-1", "salt-0", 0.0)
    assert state is not None
    return state


def after(state: RolloutState, week: int, *trials: Settled, rules: RolloutSection = RULES) -> RolloutState:
    return base.step(rules, state, Standing(state.id, state.stage, trials=trials), f"salt-{week}", week * WEEK_S)


def test_weeks_add_up_and_each_is_drawn_anew() -> None:
    one = after(begun(), 1, *WEEK)
    two = after(one, 2, *WEEK, Settled(True, 1.0))
    assert (one.stage, one.salt, two.stage, two.salt) == (1, "salt-1", 2, "salt-2")
    sums = base.sums_of(two)
    assert (sums.strata, sums.one, sums.other) == (2, 18, 7)
    assert sums.mean is not None and 0 < sums.mean < 6 / 9 - 0.5, "the second week's base was liked more"
    assert two.started_at == 0.0 and two.live


def test_a_week_in_which_nobody_of_one_arm_judged_changes_no_sum() -> None:
    one = after(begun(), 1, *WEEK)
    assert base.sums_of(after(one, 2)) == base.sums_of(after(one, 2, *WEEK[:9])) == base.sums_of(one)
    assert after(one, 2).stage == 2


def test_a_share_that_is_changed_holds_from_the_next_draw_on() -> None:
    more = RULES.model_copy(update={"base_holdback": 0.05})
    assert base.step(more, begun(), Standing("base-1", 0), "s", WEEK_S - 1) == begun()
    assert after(begun(), 1, *WEEK, rules=more).weight == 0.05
    assert base.start(RULES.model_copy(update={"base_holdback": 0.0}), "policy@base", "b", "s", 0.0) is None


def test_a_week_that_a_wrong_clock_dated_is_over() -> None:
    assert base.step(RULES, begun(), Standing("base-1", 0), "s", -1.0).stage == 1


def test_a_week_that_ends_within_a_test_goes_on_until_that_has_ended() -> None:
    week = Standing("base-1", 0, trials=WEEK)
    assert base.step(RULES, begun(), week, "new", 2 * WEEK_S, in_test=True) == begun()
    later = base.step(RULES, begun(), week, "new", 2 * WEEK_S)
    assert (later.salt, later.stage) == ("new", 1) and base.sums_of(later) == base.sums_of(after(begun(), 1, *WEEK))
