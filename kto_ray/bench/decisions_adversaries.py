"""Who could have a challenger promoted that pleases nobody more: each with the guard against it, and without."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.random import Generator

from kto_ray.bench.decisions_life import alarms_of
from kto_ray.bench.decisions_trials import LEVEL, Trials, first, over, portions, reached, rules, share, voters
from kto_ray.stats import score
from kto_ray.stats.score import Arms, Floats

RATE = 0.6
VOTERS = 10_000
SYBILS = 0.05  # of the voters are one person, up for the challenger and down for the champion
PER_DAY = 1000
DAYS, WATCHED_DAYS = 14, 14  # of the deciding stage, and of the holdback after a promotion


def adversaries(tests: int, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """Each: the case, the share of tests that promote without the guard, and with it."""
    found = [row for make in (_quiet, _sybils, _withdrawals, _heavy) for row in make(tests)]
    for row in found:
        without, guarded = row["without"]["share"], row["with"]["share"]
        tell(f"{row['case']}: {without:.1%} promoted without the guard, {guarded:.1%} with it")
    return found


def _quiet(tests: int) -> list[dict[str, Any]]:
    """The challenger's unhappy users vote less. The guard: more ups per exposed user, a hold on voters' shares."""
    found = []
    for worse, quieter in ((0.0, 0.2), (0.0, 0.3), (0.0, 0.5), (0.05, 0.5)):
        ever = over(voters(VOTERS, (RATE, RATE - worse), quieter=quieter), VOTERS, tests, 8, rules)
        words = f"unhappy users vote {quieter:.0%} less" + (f", {worse:.0%} worse" if worse else "")
        found.append(_row(words, ever))
    return found


def _sybils(tests: int) -> list[dict[str, Any]]:
    """The guard: who was first seen after the rollout began has no vote; a filtered test has honest trials only."""

    def draw(random: Generator, count: int) -> Trials:
        honest = voters(VOTERS, (RATE, RATE))(random, count)
        one = random.random(honest.challenger.shape) < SYBILS
        return Trials(honest.challenger, np.where(one, honest.challenger, honest.outcome))

    without = over(draw, VOTERS, tests, 9, rules)
    kept = round(VOTERS * (1 - SYBILS))
    filtered = over(voters(kept, (RATE, RATE)), kept, tests, 9, rules)
    names = (("the score alone", 0), ("all conditions", 1))
    return [
        {"case": f"{SYBILS:.0%} sybils, {words}", "without": share(without[:, i]), "with": share(filtered[:, i])}
        for words, i in names
    ]


def _withdrawals(tests: int, n: int = 2000, hours: float = 336.0, looks: int = 15) -> list[dict[str, Any]]:
    """Users take votes back. The guard: a trial settles after 24 hours, and stays.

    Without it, each look asks the score of what then stands. Either so many of all take theirs back, a day after it on
    average, or half of the challenger's unhappy ones do, two days after on average and not within the first.
    """
    at = np.arange(n) * hours / n

    def make(random: Generator, count: int, taken: float | None) -> Arms:
        trials = voters(n, (RATE, RATE))(random, count)
        delay = random.standard_exponential(trials.outcome.shape) * 24
        if taken is None:
            takes = trials.challenger & (trials.outcome == 0) & (random.random(delay.shape) < 0.5)
            delay += 24
        else:
            takes = random.random(delay.shape) < taken
        delay = np.where(takes, delay, math.inf)
        unsettled = np.zeros(count, dtype=np.bool_)
        for look in np.linspace(hours / looks, hours, looks):
            unsettled |= _of_those(trials, (at <= look) & (at + delay > look))[:, 0] >= -math.log(LEVEL)
        return np.stack([unsettled, _of_those(trials, delay > 24)[:, 1] >= -math.log(LEVEL)], axis=-1)

    return [
        _row(words, portions(partial(make, taken=taken), n, tests, 10))
        for words, taken in (
            ("half of all votes taken back", 0.5),
            ("all votes taken back", 1.0),
            ("half of the challenger's downs taken back", None),
        )
    ]


def _of_those(trials: Trials, standing: Arms) -> Floats:
    """(tests, 2): the score's last and highest evidence, of the trials that stand alone."""
    found = np.full((len(standing), 2), -math.inf)
    for i, (arm, outcome, stands) in enumerate(zip(trials.challenger, trials.outcome, standing, strict=True)):
        if stands.any():
            path = score.log_evidence(arm[stands], outcome[stands], 0.5)
            found[i] = path[-1], path.max()
    return found


def _heavy(tests: int, n: int = 3000) -> list[dict[str, Any]]:
    """Users differ in taste, and some vote two hundred times. The guard: a user is one trial, with the mean of all.

    Without it each vote is a trial.
    """

    def make(random: Generator, count: int) -> Arms:
        arm = random.random((count, n)) < 0.5
        taste = random.beta(3 * RATE, 3 * (1 - RATE), arm.shape)
        votes = np.minimum(200, 1 + random.pareto(1.1, arm.shape)).astype(np.int64)
        ups = random.binomial(votes, taste)
        each = np.array([_each_vote(*user) for user in zip(arm, votes, ups, strict=True)])
        return np.stack([each, rules(Trials(arm, ups / votes))[:, 0]], axis=-1)

    return [_row("users who vote up to 200 times", portions(make, n, tests, 11))]


def _each_vote(arm: Arms, votes: Any, ups: Any) -> bool:
    """Whether the score ever promotes where each vote is a trial; a user's votes come one after another, ups first."""
    of = np.repeat(np.arange(arm.size), votes)
    turn = np.arange(of.size) - np.repeat(np.cumsum(votes) - votes, votes)
    evidence = score.log_evidence(arm[of], (turn < ups[of]).astype(np.float64), 0.5)
    return bool(evidence.max() >= -math.log(LEVEL))


# ---- novelty

Evidence = Literal["ever", "now", "fresh"]


def novelty(tests: int) -> list[dict[str, Any]]:
    """A gain of 15 points that fades to a loss of 3, by how a decision waits, and whether the holdback undoes it.

    A decision comes after so many days, at evidence that was ever enough, that is enough then, or that is enough of
    trials after those days alone. `kept` is what the holdback has not rolled back within WATCHED_DAYS.
    """
    found = []
    rules_of: tuple[tuple[int, Evidence], ...] = ((0, "ever"), (2, "ever"), (7, "ever"), (7, "now"), (7, "fresh"))
    for days, evidence in rules_of:
        at = over(_fading, DAYS * PER_DAY, tests, 12, partial(_promoted_on, days=days, evidence=evidence))
        promoted = np.isfinite(at)
        watched = alarms_of(int(promoted.sum()), PER_DAY, 60, 13, partial(_fall, at[promoted]), RATE)
        kept = promoted.copy()
        kept[promoted] = watched > WATCHED_DAYS
        undone = float(np.median(watched)) if watched.size and np.median(watched) < math.inf else None
        case = {"from_day": days, "evidence": evidence, "promoted": share(promoted), "kept": share(kept)}
        found.append({**case, "rollback_days": undone})
    return found


def gain_on(day: Any) -> Any:
    """Of the challenger, so many days after its first answer."""
    return -0.03 + 0.18 * np.exp(-np.asarray(day) / 3)


def _fading(random: Generator, tests: int) -> Trials:
    n = DAYS * PER_DAY
    arm = random.random((tests, n)) < 0.5
    rate = np.where(arm, RATE + gain_on(np.arange(n) / PER_DAY), RATE)
    return Trials(arm, (random.random((tests, n)) < rate).astype(np.float64))


def _promoted_on(trials: Trials, days: int, evidence: Evidence) -> Floats:
    """The day of the promotion; infinite where there is none."""
    begin = days * PER_DAY
    skip = begin if evidence == "fresh" else 0
    path = score.log_evidence(trials.challenger[:, skip:], trials.outcome[:, skip:], 0.5)
    enough = path >= -math.log(LEVEL) if evidence == "now" else reached(path, LEVEL)
    at: Floats = (begin + first(enough[:, begin - skip :])) / PER_DAY
    return at


def _fall(at: Floats, day: int) -> Floats:
    """The champion's, below the one before it, on a day after its promotion at `at`."""
    fall: Floats = -gain_on(at + day - 0.5)
    return fall


def _row(words: str, ever: Arms) -> dict[str, Any]:
    return {"case": words, "without": share(ever[:, 0]), "with": share(ever[:, 1])}
