"""`kto-ray bench gate`: how often the gate passes candidates of known worth: no better, worse, drifted, better.

Held-out users, answers' lengths and both policies' rewards are drawn from a known truth, and the gate's own functions
(`evaluate.ranks`, `evaluate.gate`) judge them; sanity is taken as given. The peer is AUC by itself, whatever the
champion's: its interval above one half. What the checks of the guard prompts do to a candidate is not simulated but
summed over all outcomes.

The truth of rewards. Ups and downs differ in length as in human data (an AUC of 0.567 for length alone). A reward is
d y + user + row, of variance 1 given the label y, three tenths of it the user's; how much users' taste is met differs
(d of a user has a standard deviation of 0.4). Candidate and champion share half the variance: how much two trainings
on much the same feedback share is not known, and the less, the harder a gain is to see. A clone is another training of
the same worth, not a copy, which could gain nothing at all. A drift along length adds as much variance as all else has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from scipy.stats import binom, multinomial, norm

from kto_ray.config import Config
from kto_ray.config.deciding import GateSection
from kto_ray.evaluate import gate
from kto_ray.evaluate.ranks import ranking
from kto_ray.records.evaluation import GateDecision
from kto_ray.stats.exact import margin_levels, share_interval

Floats = NDArray[np.float64]

BY_LENGTH = float(np.sqrt(2) * norm.ppf(0.567))  # between ups and downs, in standard deviations of log length
USER_SHARE, TASTE_SD, SHARED = 0.3, 0.4, 0.5
MEAN_ROWS = 3.0  # of a user, at least one
SANE = dict.fromkeys(gate.REQUIRED, 0.0) | {"length_ratio": 1.0}
AT_MOST, AT_LEAST = 0.15, 0.9  # the bars: of what is no better, of what is


@dataclass(frozen=True, slots=True)
class Truth:
    """A candidate of known worth. An AUC of one half is that of the base model, whose rewards are all 0."""

    name: str
    champion: float  # AUC
    candidate: float
    drift: float = 0.0  # along length, in standard deviations of all else
    toward: bool = False  # always to what is liked, else to either side
    users: int = 60
    bar: float | None = None  # AT_MOST or AT_LEAST


TRUTHS = (
    Truth("a clone of a champion of AUC 0.7", 0.7, 0.7, bar=AT_MOST),
    Truth("the same, 15 users", 0.7, 0.7, users=15, bar=AT_MOST),
    Truth("worse by 0.05 than a champion of 0.7", 0.7, 0.65, bar=AT_MOST),
    Truth("it learnt nothing, against the base", 0.5, 0.5, bar=AT_MOST),
    Truth("drift along length, against the base", 0.5, 0.5, drift=1.0, bar=AT_MOST),
    Truth("drift toward the liked length, against the base", 0.5, 0.5, drift=1.0, toward=True),
    Truth("drift toward the liked length, nothing else, against the base", 0.5, 0.5, drift=30.0, toward=True),
    Truth("a clone that drifts along length, against a champion of 0.7", 0.7, 0.7, drift=1.0, bar=AT_MOST),
    Truth("better by 0.1 than a champion of 0.7", 0.7, 0.8, bar=AT_LEAST),
    Truth("the same, 15 users", 0.7, 0.8, users=15),
    Truth("0.7 against the base", 0.5, 0.7, bar=AT_LEAST),
    Truth("0.6 against the base", 0.5, 0.6),
)


# Shares of the checks that a candidate loses and wins, of answers that are sampled: equal, worse, broken
CHECKED = ((0.05, 0.05), (0.1, 0.1), (0.15, 0.15), (0.15, 0.1), (0.2, 0.1), (0.25, 0.1), (0.4, 0.05))


def held_out(truth: Truth, random: np.random.Generator) -> tuple[Floats, Floats, NDArray[np.bool_], list[str], Floats]:
    """One holdout: the candidate's and the champion's rewards, labels, users, and lengths in tokens."""
    codes = np.repeat(np.arange(truth.users), 1 + random.poisson(MEAN_ROWS - 1, truth.users))
    rows = codes.size

    def noise() -> Floats:
        user, row = random.normal(size=truth.users)[codes], random.normal(size=rows)
        drawn: Floats = np.sqrt(USER_SHARE) * user + np.sqrt(1 - USER_SHARE) * row
        return drawn

    labels = random.random(rows) < random.beta(4, 4, truth.users)[codes]
    length = noise() + BY_LENGTH * labels
    shared, taste = noise(), TASTE_SD * random.normal(size=truth.users)[codes]

    def rewards(auc: float) -> Floats:
        met = np.sqrt(2 + TASTE_SD**2) * norm.ppf(auc) + taste if auc != 0.5 else np.zeros(rows)
        found: Floats = np.sqrt(SHARED) * shared + np.sqrt(1 - SHARED) * noise() + met * labels
        return found

    champion = rewards(truth.champion) if truth.champion != 0.5 else np.zeros(rows)
    side = 1.0 if truth.toward else random.choice([-1.0, 1.0])
    candidate = rewards(truth.candidate) + side * truth.drift * length
    return candidate, champion, labels, [str(code) for code in codes], np.ceil(np.exp(4 + 0.6 * length))


def verdict(section: GateSection, truth: Truth, random: np.random.Generator) -> tuple[GateDecision, bool]:
    """The gate's decision on one holdout, and whether AUC by itself would have passed it."""
    candidate, champion, labels, users, lengths = held_out(truth, random)
    figures = ranking(section, candidate, champion, labels, users, lengths)
    counts = {
        "n_holdout_desirable": float(labels.sum()),
        "n_holdout_undesirable": float((~labels).sum()),
        "n_holdout_users": float(truth.users),
    }
    return gate.decide(section, SANE | counts | figures)[0], figures["auc_low"] > 0.5


def bench_gate(config: Config, lifetimes: int, resamples: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Simulate.

    Args:
        config: the section gate is used, but for its number of resamples.
        lifetimes: holdouts of each truth.
        resamples: of each bootstrap; fewer than the gate's own save time and make its intervals a little noisier.
    """
    section = config.gate.model_copy(update={"bootstrap": resamples})
    rows = []
    for number, truth in enumerate(TRUTHS):
        random = np.random.default_rng([number, 0])
        found = [verdict(section, truth, random) for _ in range(lifetimes)]
        decisions = [decision for decision, _ in found]
        passed = decisions.count(GateDecision.PROMOTE_TO_CANARY)
        low, high = share_interval(passed, lifetimes, 0.95)
        row = {
            **asdict(truth),
            "passed_share": passed / lifetimes, "passed_low": low, "passed_high": high,
            "rejected_share": decisions.count(GateDecision.REJECT) / lifetimes,
            "cannot_tell_share": decisions.count(GateDecision.INCONCLUSIVE) / lifetimes,
            "auc_alone_passed_share": sum(alone for _, alone in found) / lifetimes,
            "met": _met(truth.bar, low, high),
        }  # fmt: skip
        rows.append(row)
        tell(f"{truth.name}: passes {row['passed_share']:.1%}, by AUC alone {row['auc_alone_passed_share']:.1%}")
    report = {"lifetimes": lifetimes, "resamples": resamples, "gate": section.model_dump(mode="json"), "truths": rows}
    return {**report, "checks": [checked(section, *shares) for shares in CHECKED]}


def checked(section: GateSection, lost: float, won: float) -> dict[str, float]:
    """What becomes of a candidate that fails `lost` of the checks that the champion meets and meets `won` of those that
    it fails, as shares of all: the exact chances of passing, of being rejected, and of "cannot tell"."""
    table = margin_levels(section.guard_prompts, section.suite_margin)
    rest = section.guard_prompts - table.lost - table.won
    chances = multinomial.pmf(
        np.stack([table.lost, table.won, rest], axis=1), section.guard_prompts, [lost, won, 1 - lost - won]
    )
    passes = table.level <= section.suite_level
    surely_worse = binom.sf(table.lost - 1, table.lost + table.won, 0.5) <= section.suite_level
    return {
        "lost_share": lost,
        "won_share": won,
        "passed_share": float(chances[passes].sum()),
        "rejected_share": float(chances[~passes & surely_worse].sum()),
        "cannot_tell_share": float(chances[~passes & ~surely_worse].sum()),
    }


def _met(bar: float | None, low: float, high: float) -> bool | None:
    """Whether the whole interval keeps the bar."""
    if bar is None:
        return None
    return high <= bar if bar == AT_MOST else low >= bar


def table(report: dict[str, Any]) -> Table:
    shown = Table("candidate, 60 users", "passes (95%)", "rejected", "cannot tell", "passes by AUC alone", "bar")
    for row in report["truths"]:
        low, high = row["passed_low"], row["passed_high"]
        shown.add_row(
            row["name"],
            f"{row['passed_share']:.1%} ({low:.1%} to {high:.1%})",
            f"{row['rejected_share']:.1%}",
            f"{row['cannot_tell_share']:.1%}",
            f"{row['auc_alone_passed_share']:.1%}",
            _bar(row),
        )
    for row in report["checks"]:
        shown.add_row(
            f"{report['gate']['guard_prompts']} checks: {row['lost_share']:.0%} lost, {row['won_share']:.0%} won",
            f"{row['passed_share']:.1%} (exact)",
            f"{row['rejected_share']:.1%}",
            f"{row['cannot_tell_share']:.1%}",
            "",
            "",
        )
    return shown


def _bar(row: dict[str, Any]) -> str:
    if row["bar"] is None:
        return ""
    side = "at most" if row["bar"] == AT_MOST else "at least"
    return f"{side} {row['bar']:.0%}: {'met' if row['met'] else 'missed'}"
