"""The score test itself: how often it promotes a clone, how many voters it needs, and what vote speed does to it."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.random import Generator
from scipy.stats import norm

from kto_ray.bench.decisions_trials import HELD, LEVEL, Draw, Trials, first, over, reached, rules, share, voters
from kto_ray.rollout.machine import UPS_ALPHA
from kto_ray.stats import budget, power, ratio, score, sequential
from kto_ray.stats.score import Arms, Floats

NULLS = (0.1, 0.3, 0.5, 0.6, 0.8)
GAINS = ((0.3, 0.5), (0.5, 0.55), (0.6, 0.65), (0.1, 0.13))
NULL_VOTERS = 10_000
SPEED_VOTERS = 5000
PATIENCE = 6  # fixed horizons after which a test gives up


TEAM_VOTERS = 6500  # 500 a day, for 13 of 14 days: the last day's trials are not settled yet
TEAM_GAINS = ((0.5, 0.55), (0.6, 0.65), (0.75, 0.8))


def team(tests: int) -> list[dict[str, Any]]:
    """10,000 users a day of whom 5% vote, and a first challenger that gains 5 points: how often it is promoted within
    14 days, at the first level of the budget, as the loop decides and by the score alone."""
    found = []
    for seed, rates in enumerate(TEAM_GAINS, start=900):
        ever = over(voters(TEAM_VOTERS, rates), TEAM_VOTERS, tests, seed, partial(rules, level=budget.level([])))
        found.append({"rates": rates, "score": share(ever[:, 0]), "decided": share(ever[:, 1])})
    return found


# What is foreseen of a test: voters, the champion's rate, the level, the challenger's share
FORESEEN = (
    (6500, 0.6, 0.005, 0.5), (2000, 0.6, 0.05, 0.5), (6500, 0.85, 0.005, 0.5), (6500, 0.3, 0.005, 0.5),
    (2000, 0.1, 0.005, 0.5), (13_000, 0.6, 0.005, 0.2),
)  # fmt: skip


def foreseen(tests: int) -> list[dict[str, Any]]:
    """How often the gain is promoted that `power` says so many voters can show in 80% of tests, as the loop decides and
    by the score alone."""
    found = []
    for seed, (n, rate, level, weight) in enumerate(FORESEEN, start=950):
        gain = power.detectable(n, rate, level, UPS_ALPHA, weight)
        draw = voters(n, (rate, rate + gain), weight)
        ever = over(draw, n, tests, seed, partial(rules, weight=weight, level=level))
        case = {"voters": n, "rate": rate, "level": level, "weight": weight, "gain": gain}
        found.append({**case, "score": share(ever[:, 0]), "decided": share(ever[:, 1])})
    return found


def fixed_horizon(rates: tuple[float, float]) -> float:
    """Voters of both arms that a test with one look needs: two-sided 5%, 80% power."""
    z = float(norm.ppf(0.975) + norm.ppf(0.8))
    return 2 * z * z * sum(p * (1 - p) for p in rates) / (rates[1] - rates[0]) ** 2


def nulls(tests: int) -> list[dict[str, Any]]:
    """How often the score ever promotes a clone within NULL_VOTERS voters; four times the tests: its bar is near."""
    found = []
    for seed, rate in enumerate(NULLS, start=100):
        ever = over(
            voters(NULL_VOTERS, (rate, rate)), NULL_VOTERS, 4 * tests, seed,
            lambda t: reached(score.log_evidence(t.challenger, t.outcome, 0.5), LEVEL)[:, -1],
        )  # fmt: skip
        found.append({"rate": rate, **share(ever)})
    return found


def today(trials: Trials, level: float) -> Any:
    """Voters after which the confidence sequence of `sequential` first lies above 0.

    At no difference the least favourable rate is the pooled one, so `sequential.log_evidence` has this closed form.
    """
    arm, up = trials.challenger, trials.outcome == 1
    n1, s1, s0 = (np.cumsum(each, axis=-1) for each in (arm, arm & up, ~arm & up))
    n = np.arange(1, arm.shape[-1] + 1)
    pooled = (s0 + s1) / n
    evidence = sequential.log_martingale(s0, n - n1 - s0, pooled) + sequential.log_martingale(s1, n1 - s1, pooled)
    return first((evidence >= -math.log(level)) & (s1 * (n - n1) > s0 * n1))


def gains(tests: int) -> list[dict[str, Any]]:
    """By the score alone: voters until it promotes over the fixed horizon, and how often those are enough that `power`
    names for it."""
    found = []
    for rates in GAINS:
        fixed = fixed_horizon(rates)
        n = math.ceil(PATIENCE * fixed)

        def rule(trials: Trials) -> Any:
            path = score.log_evidence(trials.challenger, trials.outcome, 0.5)
            ours = [first(path >= -math.log(level)) for level in (0.05, 0.025, 0.005)]
            return np.stack([*ours, today(trials, 0.05)], axis=-1)

        needed = over(voters(n, rates), n, tests, 2, rule)
        at = np.median(needed, axis=0) / fixed
        enough = {
            f"at_{level:g}": share(needed[:, i] <= power.voters_needed(rates[1] - rates[0], rates[0], level))
            for i, level in enumerate((0.05, 0.025, 0.005))
        }
        names = ("at_5_ratio", "at_2_5_ratio", "at_0_5_ratio", "today_ratio")
        found.append(
            {"rates": rates, "fixed_voters": fixed, **dict(zip(names, at.tolist(), strict=True)), "power": enough}
        )
    return found


def sooner(random: Generator, tests: int) -> Arms:
    """Users vote after three days on average, the challenger's after half of that: so more of these have voted when
    their trial settles, a day after the first answer. Who votes later has none."""
    champion, challenger = -np.expm1(-1 / np.array([3.0, 1.5]))
    arms: Arms = random.random((tests, SPEED_VOTERS)) < challenger / (champion + challenger)
    return arms


def more(random: Generator, tests: int) -> Arms:
    """Twice as many of the challenger's users vote."""
    return random.random((tests, SPEED_VOTERS)) < 2 / 3


def drifting(arms: Callable[[Generator, int], Arms], rate: float, drift: float) -> Draw:
    """No gain, and a rate that drifts in both arms alike, by so much from the first voter to the last."""
    rates = np.linspace(rate - drift / 2, rate + drift / 2, SPEED_VOTERS)
    return lambda random, tests: Trials(
        arms(random, tests), (random.random((tests, SPEED_VOTERS)) < rates).astype(np.float64)
    )


def speeds(tests: int) -> list[dict[str, Any]]:
    """No gain, but the challenger's users vote twice as soon, or twice as many of them vote."""
    found = []
    for rate, drift in ((0.3, 0.0), (0.6, 0.0), (0.8, 0.0), (0.3, 0.2), (0.6, 0.2), (0.8, 0.2)):
        for words, arms in (("twice as soon", sooner), ("twice as many", more)):
            ever = over(drifting(arms, rate, drift), SPEED_VOTERS, tests, 3, _by_speed)
            known, alone, held = (share(each) for each in ever.T)
            case = {"rate": rate, "drift": drift, "voters": words}
            found.append({**case, "fixed_share": known, "score": alone, "held": held})
    return found


def _by_speed(trials: Trials) -> Arms:
    """(tests, 3): promoted with the assignment's share as it is, with the estimated one, and with the hold besides."""
    known = reached(_with_known_share(trials), LEVEL)
    better = reached(score.log_evidence(trials.challenger, trials.outcome, 0.5), LEVEL)
    counts = np.cumsum(trials.challenger, axis=-1)
    unequal = ratio.log_evidence(np.arange(1, counts.shape[-1] + 1) - counts, counts, 0.5) >= -math.log(HELD)
    return np.stack([each.any(axis=-1) for each in (known, better, better & ~unequal)], axis=-1)


def _with_known_share(trials: Trials) -> Floats:
    """The trap: the score with w_t = w."""
    y = trials.outcome
    rate = (1 + np.cumsum(y, axis=-1) - y) / (2 + np.arange(y.shape[-1]))
    x = (trials.challenger - 0.5) * (y - rate) / (rate * (1 - rate))
    cap = 0.5 / np.maximum(0.5 / rate, 0.5 / (1 - rate))
    return score.log_mean([np.cumsum(score.log_factors(x, cap, bet), axis=-1) for bet in score.BETS])
