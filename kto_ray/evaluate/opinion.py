"""What a judge thinks of candidate and champion: asked within bounds, as figures, and in words.

judge_win_rate: of guard prompts, how often the judge prefers the candidate's answer to the champion's, a tie one half,
with Clopper and Pearson's interval over prompts (half counts make it too wide, never too narrow).

judge_agreement: whether it knows what this team's users like. Users never see two answers to one prompt, so no pair of
theirs can be put to the judge; and an up and a down of different prompts are none, for what a prompt asks for would
weigh most. It therefore rates held-out answers one by one, not knowing the thumbs: the figure is the chance that one
with a thumb up has the higher rating than one with a thumb down (AUC), with the gate's bootstrap over users. Of a rule
or a reward model that is the very rating by which it prefers; of an LLM it is asked in other words than a pair.

A judge that is away or talks nonsense fails nothing: above `MISSING` questions without an opinion, it is asked no more,
and the figure is absent, with the reason. What is missing below that is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import TypeVar

import numpy as np

from kto_ray.config.deciding import GateSection
from kto_ray.evaluate.judges import Judge, Silent, judge_of
from kto_ray.evaluate.ranks import with_interval
from kto_ray.records.evaluation import GuardAnswer, Opinion, Thumbed
from kto_ray.stats.exact import share_interval
from kto_ray.stats.ranking import Interval, auc, bootstrap

MISSING = 0.1  # of the questions

T = TypeVar("T")


def opinion(
    section: GateSection, candidate: Sequence[GuardAnswer], champion: Sequence[GuardAnswer], rows: Sequence[Thumbed]
) -> Opinion:
    """Ask the judge of a fixed choice of the guard prompts which answer is better, and of held-out rows how good they
    are; nothing where there is no judge."""
    if section.judge is None:
        return Opinion()
    judge = judge_of(section.judge)
    wins, agreement = _win_rate(section, judge, candidate, champion), _agreement(section, judge, rows)
    return Opinion({**wins.figures, **agreement.figures}, (*wins.lacking, *agreement.lacking))


def against(section: GateSection, metrics: Mapping[str, float]) -> tuple[list[str], list[str]]:
    """What the judge surely says against the candidate, and what it does not say surely. Nothing where its win rate
    decides nothing."""
    least = section.judge.min_win_rate if section.judge is not None else None
    if least is None:
        return [], []
    if "judge_win_rate" not in metrics:
        return [], [f"the judge's win rate is not known, and min_win_rate is {least:g}"]
    if metrics["judge_win_rate_high"] < least:
        return [f"the judge likes it less: {_wins(section, metrics)} lies below min_win_rate {least:g}"], []
    if metrics["judge_win_rate_low"] < least:
        return [], [f"the judge's win rate: {_wins(section, metrics)} does not lie above min_win_rate {least:g}"]
    return [], []


def words(section: GateSection, metrics: Mapping[str, float]) -> tuple[str, ...]:
    """What the judge said, and how far it may be believed."""
    told = [f"judge: {_wins(section, metrics)}"] if "judge_win_rate" in metrics else []
    if "judge_agreement" in metrics:
        rated = (
            f"its ratings of {metrics['n_judge_rows']:.0f} held-out answers tell thumbs up from thumbs down with AUC"
        )
        figure = _interval(section, metrics, "judge_agreement")
        if metrics["judge_agreement_low"] > 0.5:
            told.append(f"the judge agrees with this team's users: {rated} {figure}")
        else:
            told.append(
                f"this judge does not know this team's taste: {rated} {figure}, which does not surely exceed one half"
            )
    return tuple(told)


def _wins(section: GateSection, m: Mapping[str, float]) -> str:
    ties = f", {m['judge_ties']:.0f} of them ties" if m["judge_ties"] else ""
    rate = _interval(section, m, "judge_win_rate")
    return f"win rate against the champion {rate} on {m['n_judged']:.0f} prompts{ties}"


def _interval(section: GateSection, m: Mapping[str, float], name: str) -> str:
    return f"{m[name]:.2f} ({section.confidence:.0%} interval {m[f'{name}_low']:.2f} to {m[f'{name}_high']:.2f})"


def _win_rate(
    section: GateSection, judge: Judge, candidate: Sequence[GuardAnswer], champion: Sequence[GuardAnswer]
) -> Opinion:
    assert section.judge is not None
    pairs = list(zip(candidate, champion, strict=True))
    if len(pairs) > section.judge.prompts:
        pairs = Random(0).sample(pairs, section.judge.prompts)
    asked = _each(section.judge.at_once, lambda p: judge.prefer(p[0].messages, p[0].text, p[1].text), pairs)
    if isinstance(asked, str):
        return Opinion({}, (f"no win rate of the judge: {asked}",))
    found = [won for won in asked if won is not None]
    low, high = share_interval(sum(found), len(found), section.confidence)
    return Opinion(
        {
            **with_interval("judge_win_rate", float(np.mean(found)), Interval(low, high)),
            "n_judged": float(len(found)),
            "judge_ties": float(found.count(0.5)),
        }
    )


def _agreement(section: GateSection, judge: Judge, rows: Sequence[Thumbed]) -> Opinion:
    assert section.judge is not None
    unknown = "whether the judge agrees with this team's users is not known:"
    if section.judge.rows == 0:
        return Opinion({}, (f"{unknown} gate.judge.rows is 0",))
    users = len({row.user for row in rows})
    if users < section.min_holdout_users:
        return Opinion({}, (f"{unknown} it can read held-out answers of {users} users only",))
    asked = _each(section.judge.at_once, lambda row: judge.rate(row.messages, row.text), rows)
    if isinstance(asked, str):
        return Opinion({}, (f"{unknown} {asked}",))
    rated = [(row, value) for row, value in zip(rows, asked, strict=True) if value is not None]
    ratings, liked = np.array([value for _, value in rated]), np.array([row.desirable for row, _ in rated])
    if liked.all() or not liked.any():
        return Opinion({}, (f"{unknown} all the held-out answers that it rated have the same thumb",))
    names = [row.user for row, _ in rated]
    bounds, _ = bootstrap(ratings, liked, names, 0.0, section.confidence, section.bootstrap)
    figures = with_interval("judge_agreement", auc(ratings[liked], ratings[~liked]), bounds)
    return Opinion({**figures, "n_judge_rows": float(len(rated))})


def _each(at_once: int, ask: Callable[[T], float], items: Sequence[T]) -> list[float | None] | str:
    """The opinion on each, None where there is none; why there are none at all, where too many are missing."""
    lost: list[Silent] = []

    def one(item: T) -> float | None:
        if len(lost) > MISSING * len(items):
            return None
        try:
            return ask(item)
        except Silent as silent:
            lost.append(silent)
            return None

    with ThreadPoolExecutor(at_once) as pool:
        found = list(pool.map(one, items))
    if len(lost) > MISSING * len(items):
        return f"{lost[-1]} (after {len(lost)} of {len(items)} questions it was asked no more)"
    return found
