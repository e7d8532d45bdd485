"""What a test waits for and what it can still come to, told to people."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kto_ray.config.deciding import RolloutSection
from kto_ray.records.rollouts import Look
from kto_ray.records.trials import GUARDS
from kto_ray.rollout.machine import advance, start
from kto_ray.rollout.outlook import outlook
from kto_ray.stats.power import detectable

DAY = 86_400.0
RULES = RolloutSection()
CANARY = start(RULES, "policy@base", "policy@v1-aaaaaa", "r1", "salt", 0.005, now=0.0)
AB = advance(RULES, CANARY, now=0.0)
SAW = {"gain": 1.0, "ups": 1.0, "harm": 0.0}
LOOK = Look("r1", DAY, 1, 500, 300.0, 500, 325.0, -0.05, 0.15, 9000, 9000, SAW)


def test_it_says_what_a_promotion_waits_for_and_how_much_is_left() -> None:
    told = outlook(RULES, AB, LOOK, 3 * DAY)
    assert told.verdict.startswith("hold: stage 'ab' goes on, for the evidence of a gain is 2.72 to one, of 200 to one")
    assert told.trials_per_day == pytest.approx(500.0), "of the two days in which trials could settle"
    assert told.trials_left == 500 * 11, "until its 14 days are over"
    assert told.detectable_gain == pytest.approx(detectable(6500, 0.6, 0.005))


def test_users_may_run_out_first() -> None:
    few = RULES.model_copy(update={"max_users": 1200})
    assert outlook(few, AB, LOOK, 3 * DAY).trials_left == 200


def test_what_a_person_let_go_on_is_no_limit() -> None:
    few = RULES.model_copy(update={"max_users": 1200})
    assert outlook(few, replace(AB, asked=("users",)), LOOK, 3 * DAY).trials_left == 500 * 11
    prolonged = replace(AB, asked=("hours",), status_at=2 * DAY)
    assert outlook(RULES, prolonged, LOOK, 3 * DAY).trials_left == 500 * 13


def test_it_says_that_a_promotion_waits_for_replicas() -> None:
    gain = {"gain": 9.0, "ups": 9.0} | {f"{name}_{end}": 0.0 for name in GUARDS for end in ("low", "high")}
    waits = replace(AB, reason="waits to be promoted, for 1 of 2 live replicas do not hold the adapter")
    told = outlook(RULES, waits, replace(LOOK, evidence=gain), 3 * DAY).verdict
    assert told.startswith("promote: the challenger is better") and told.endswith(f"; it {waits.reason}")


def test_what_cannot_be_known_is_not_told() -> None:
    watching = outlook(RULES, CANARY, replace(LOOK, stage=0), 3 * DAY)
    assert (watching.trials_per_day, watching.trials_left, watching.detectable_gain) == (None, None, None)
    early = outlook(RULES, AB, LOOK, 0.5 * DAY)
    assert early.trials_left is None, "before the first trial settles"
    nobody = outlook(RULES, AB, Look("r1", 0.0, 1, 0, 0.0, 0, 0.0, -1.0, 1.0), 3 * DAY)
    assert (nobody.trials_left, nobody.detectable_gain) == (0, None)
