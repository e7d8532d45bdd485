"""`kto-ray bench decisions`: how often the decisions about a challenger are wrong, and how soon they come.

Everything is simulated with the package's own functions and a fixed seed: `decisions_test` the score test,
`decisions_life` the budget and the holdback, `decisions_adversaries` who might fool them. The peer in the same run is
the confidence sequence of `stats/sequential`, or the same rule without the guard that is measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from rich.table import Table

from kto_ray.bench.decisions_adversaries import adversaries, novelty
from kto_ray.bench.decisions_life import falls, false_alarms, lifetimes
from kto_ray.bench.decisions_test import foreseen, gains, nulls, speeds, team
from kto_ray.bench.decisions_trials import HELD, LEVEL

LEAST_NULL = 0.01  # a test that never promotes is no good test
SLOWER = 1.2  # than the fixed horizon, and than the days in EXPECTED
FALSE_DISCOVERIES, KEPT = 0.1, 0.9
TEAM = 0.8
POWER = (0.75, 0.9)  # of the voters, or the gain, that `power` names for 80%
EXPECTED = {  # days to the alarm: voters a day, the fall
    (100, 0.05): 73, (100, 0.1): 25, (100, 0.2): 9, (1000, 0.05): 12, (1000, 0.1): 4, (1000, 0.2): 2,
}  # fmt: skip


def bench_decisions(tests: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Simulate so many tests, or lifetimes, for each rate."""
    report: dict[str, Any] = {"tests": tests, "level": LEVEL, "held_level": HELD}
    report["nulls"] = nulls(tests)
    tell("clones promoted: " + ", ".join(f"{row['share']:.1%} at {row['rate']:g}" for row in report["nulls"]))
    report["gains"] = gains(tests)
    for row in report["gains"]:
        ours, today = row["at_5_ratio"], row["today_ratio"]
        tell("{:g} against {:g}: ".format(*row["rates"]) + f"{ours:.2f} of the fixed horizon, today's {today:.2f}")
    report["team"] = team(tests)
    report["foreseen"] = foreseen(tests)
    report["speeds"] = speeds(tests)
    report["lifetimes"] = lifetimes(tests)
    tell(f"false discoveries by e-LORD: {report['lifetimes']['e_lord']['false_discovery_share']:.1%}")
    report["falls"] = falls(tests, tell)
    report["false_alarms"] = false_alarms(tests)
    report["adversaries"] = adversaries(tests, tell)
    report["novelty"] = novelty(tests)
    return {**report, "met": _met(report)}


def _met(report: dict[str, Any]) -> dict[str, bool]:
    """Each bar, by the figures as measured."""
    life = report["lifetimes"]["e_lord"]
    met = {f"null at {row['rate']:g}": LEAST_NULL <= row["share"] <= LEVEL for row in report["nulls"]}
    for row in report["gains"]:
        words = "{:g} against {:g}".format(*row["rates"])
        met[words] = row["at_5_ratio"] <= SLOWER
        met[f"{words}, power"] = all(POWER[0] <= each["share"] <= POWER[1] for each in row["power"].values())
    for row in report["team"]:
        met["a team, {:g} to {:g}".format(*row["rates"])] = row["decided"]["share"] >= TEAM
    for row in report.get("foreseen", ()):  # a report from before it was simulated has none
        met[_case(row)] = POWER[0] <= row["decided"]["share"] <= POWER[1]
    for row in report["speeds"]:
        met[f"{row['voters']}, {row['rate']:g}, drift {row['drift']:g}"] = row["held"]["share"] <= LEVEL
    met["false discoveries"] = life["false_discovery_share"] <= FALSE_DISCOVERIES
    met["true promotions kept"] = life["kept"]["share"] >= KEPT
    if (decided := report["lifetimes"].get("as_decided")) is not None:  # a report from before it was simulated has none
        met["false discoveries, as decided"] = decided["false_discovery_share"] <= FALSE_DISCOVERIES
        met["true promotions kept, as decided"] = decided["kept"]["share"] >= KEPT
    for row in report["falls"]:
        at_most = math.ceil(SLOWER * EXPECTED[row["per_day"], row["fall"]])  # days are whole
        met[f"fall of {row['fall']:.0%} at {row['per_day']} a day"] = row["later_days"] <= at_most
    for row in report["false_alarms"]:
        met[f"false alarms at {row['per_day']} a day"] = row["per_decade"] <= 1
    for row in report["adversaries"]:
        met[row["case"]] = row["with"]["share"] <= LEVEL
    for row in report["novelty"]:
        met[f"novelty, {_waits(row)}"] = row["kept"]["share"] <= LEVEL
    return met


def _case(row: dict[str, Any]) -> str:
    """What was foreseen of a test."""
    drawn = f"{row['voters']} voters at {row['rate']:g}, a level of {row['level']:.1%}, weight {row['weight']:g}"
    return f"{drawn}: {100 * row['gain']:.1f} points"


def _waits(row: dict[str, Any]) -> str:
    words = {"ever": "evidence that was ever enough", "now": "evidence enough then", "fresh": "later trials only"}
    return f"decided from day {row['from_day']}, {words[row['evidence']]}"


def _percent(each: dict[str, float]) -> str:
    return f"{each['share']:.1%} ({each['low_share']:.1%} to {each['high_share']:.1%})"


def table(report: dict[str, Any]) -> Table:
    shown = Table("", "measured", "peer", "bar", title=f"{report['tests']:,} simulated tests or lifetimes of each")
    met = report["met"]

    def add(words: str, measured: str, peer: str, bar: str, name: str | None = None) -> None:
        shown.add_row(words, measured, peer, bar + ("" if name is None or met[name] else ", MISSED"))

    _show_test(report, add)
    _show_life(report, add)
    for row in report["adversaries"]:
        add(
            f"promoted: {row['case']}",
            _percent(row["with"]),
            _percent(row["without"]),
            f"at most {LEVEL:.0%}",
            row["case"],
        )
    for row in report["novelty"]:
        undone = "never" if row["rollback_days"] is None else f"in {row['rollback_days']:.0f} days"
        words = f"novelty that fades, {_waits(row)}: promoted and kept 14 days"
        peer = f"promoted {row['promoted']['share']:.1%}, undone {undone}"
        add(words, _percent(row["kept"]), peer, f"at most {LEVEL:.0%}", f"novelty, {_waits(row)}")
    return shown


Add = Callable[..., None]


def _show_test(report: dict[str, Any], add: Add) -> None:
    for row in report["nulls"]:
        name = f"null at {row['rate']:g}"
        add(
            f"a clone is promoted by the score alone, {name[5:]}",
            _percent(row),
            "",
            f"{LEAST_NULL:.0%} to {LEVEL:.0%}",
            name,
        )
    for row in report["gains"]:
        words = "{:g} against {:g}".format(*row["rates"])
        ours, peer = f"{row['at_5_ratio']:.2f} times", f"{row['today_ratio']:.2f} times"
        add(f"the score alone: median voters over a fixed horizon's, {words}", ours, peer, f"at most {SLOWER:g}", words)
        lower = f"{row['at_2_5_ratio']:.2f}, {row['at_0_5_ratio']:.2f} times"
        add("- at levels of 2.5%, 0.5%", lower, "", "")
        enough = ", ".join(f"{each['share']:.0%}" for each in row["power"].values())
        add(
            "- reached within the voters named for 80% of it, at 5, 2.5, 0.5%",
            enough,
            "",
            "75 to 90%",
            f"{words}, power",
        )
    for row in report["team"]:
        words = "{:g} to {:g}".format(*row["rates"])
        promoted, alone = _percent(row["decided"]), f"{row['score']['share']:.1%} by the score alone"
        add(
            f"500 votes a day, {words}, promoted in 14 days",
            promoted,
            alone,
            f"at least {TEAM:.0%}",
            f"a team, {words}",
        )
    for row in report.get("foreseen", ()):
        words, alone = f"foreseen in 80% of tests, of {_case(row)}", f"{row['score']['share']:.1%} by the score alone"
        add(words, _percent(row["decided"]), alone, "75 to 90%", _case(row))
    for row in report["speeds"]:
        words = f"{row['voters']}, {row['rate']:g}, drift {row['drift']:g}"
        peer = f"{row['score']['share']:.1%} without the hold, {row['fixed_share']['share']:.1%} with a fixed share"
        add(
            f"promoted: the challenger's users vote {words}", _percent(row["held"]), peer, f"at most {LEVEL:.0%}", words
        )


def _show_life(report: dict[str, Any], add: Add) -> None:
    peer = report["lifetimes"]["each_at_5"]
    others = f"{peer['false_discovery_share']:.1%} with 5% each"
    kept = f"{peer['kept']['share']:.1%} with 5% each"
    for name, words, met in (("e_lord", "the score alone", ""), ("as_decided", "as the loop decides", ", as decided")):
        life = report["lifetimes"].get(name)
        if life is None:
            continue
        false = f"{life['false_discovery_share']:.1%} ({life['low_share']:.1%} to {life['high_share']:.1%})"
        at_most = f"at most {FALSE_DISCOVERIES:.0%}"
        add(f"false promotions of all, 50 rounds, {words}", false, others, at_most, f"false discoveries{met}")
        at_least = f"at least {KEPT:.0%}"
        add(
            f"gains of 5 points promoted, {words}", _percent(life["kept"]), kept, at_least, f"true promotions kept{met}"
        )
    for row in report["falls"]:
        name = f"fall of {row['fall']:.0%} at {row['per_day']} a day"
        bar = math.ceil(SLOWER * EXPECTED[row["per_day"], row["fall"]])
        days = f"{row['later_days']:.0f} days, {row['at_once_days']:.0f} from the promotion on"
        add(f"alarm after a {name}", days, "", f"at most {bar}", name)
    for row in report["false_alarms"]:
        measured = f"{row['per_decade']:.2f} ({row['low_per_decade']:.2f} to {row['high_per_decade']:.2f})"
        name = f"false alarms at {row['per_day']} a day"
        add(f"{name}, in ten years", measured, f"{row['share']:.1%} in {row['days']} days", "at most 1", name)
