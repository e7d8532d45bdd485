"""The holdback's detector: folding by hand, alarms that come after a fall, and seldom without one."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest

from kto_ray.bench.decisions_life import alarms
from kto_ray.bench.decisions_trials import voters
from kto_ray.stats.detector import ALARM, BETS, WARN, Said, Watch, fold, log_evidence, said
from kto_ray.stats.score import log_factors, scores


def test_a_day_is_folded_as_the_formula_says() -> None:
    drawn = voters(40, (0.5, 0.6), 0.1)(np.random.default_rng(0), 1)
    held, outcome = drawn.challenger[0], drawn.outcome[0]
    score, cap = scores(held, outcome, 0.1).against(0.0)
    growth = [math.exp(log_factors(score, cap, bet).sum()) for bet in BETS]
    one = fold(Watch(), held, outcome, 0.1)
    assert math.exp(log_evidence(one)) == pytest.approx(np.mean(growth))
    assert one.trials == pytest.approx(36) and one.days == 1
    half = fold(one, held[:1], np.array([0.5]), 0.9)
    assert half.days == 2 and math.exp(log_evidence(half)) > np.mean(growth), "the next day adds its unit"
    assert fold(one, held[:0], outcome[:0], 0.1) == one, "a day without trials is none"


def test_its_state_is_plain_and_begins_without_evidence() -> None:
    watch = fold(Watch(), np.array([True, False]), np.array([1.0, 0.0]), 0.1)
    told = json.loads(json.dumps(asdict(watch)))
    assert Watch(**{**told, "log_stakes": tuple(told["log_stakes"])}) == watch
    assert log_evidence(Watch()) == -math.inf and said(Watch()) is Said.QUIET


def test_another_weight_begins_the_sums_anew_and_keeps_the_evidence() -> None:
    arm, outcome = np.array([True, False]), np.array([1.0, 0.0])
    before = Watch((3.0,) * len(BETS), 0.1, 500.0, 50.0, 300.0)
    grown, same = fold(before, arm, outcome, 0.5), fold(before, arm, outcome, 0.1)
    assert grown.trials == pytest.approx(1.8) and same.trials == pytest.approx(451.8)
    assert min(grown.log_stakes) > 3


def test_what_it_says() -> None:
    def at(evidence: float) -> Said:
        return said(Watch((math.log(evidence + 1),) * len(BETS)))

    assert [at(e) for e in (WARN - 1, WARN + 1, ALARM - 1, ALARM + 1)] == ["quiet", "warn", "warn", "alarm"]


def test_days_alone_are_no_warning() -> None:
    """M is the number of days where nobody is better."""

    def after(days: int, times: float) -> Said:
        return said(Watch((math.log(times * days + 1),) * len(BETS), days=days))

    assert [after(days, 1.9) for days in (150, 400, 1000)] == ["quiet"] * 3
    assert [after(days, 2.5) for days in (150, 400, 1000)] == ["warn"] * 3


def test_the_mean_of_the_evidence_is_the_number_of_days() -> None:
    """M - days is a martingale where nothing fell: the mean over 1,500 lives after ten days is ten."""
    random = np.random.default_rng(1)
    found = []
    for _ in range(1500):
        watch = Watch()
        for _ in range(10):
            drawn = voters(30, (0.6, 0.6), 0.5)(random, 1)
            watch = fold(watch, drawn.challenger[0], drawn.outcome[0], 0.5)
        found.append(math.exp(log_evidence(watch)))
    assert 8.5 < np.mean(found) < 11


def test_a_fall_is_found_in_days_and_a_rise_is_not() -> None:
    """A fall of 20 points at 100 voters a day: half of 300 lives in 6 to 12 days. A better champion never alarms."""
    assert 6 <= np.median(alarms(300, 100, 0.2, 60)) <= 12
    assert np.isinf(alarms(100, 100, -0.1, 120)).all()


def test_false_alarms_are_seldom_and_not_never() -> None:
    """300 lives of two years: within them at most 730 / ALARM = 20% (three standard errors above), and some."""
    wrong = np.isfinite(alarms(300, 50, 0.0, 730)).mean()
    assert 0.01 < wrong < 0.2 + 0.07
