"""A judge's figures and their words: win rate, agreement with thumbs, and a judge that says nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from scipy.stats import binomtest

from kto_ray.config.deciding import GateSection
from kto_ray.evaluate import opinion as room
from kto_ray.evaluate.judges import RuleJudge, Silent
from kto_ray.evaluate.opinion import against, opinion, words
from kto_ray.records.completions import Message
from kto_ray.records.evaluation import GuardAnswer, Opinion, Thumbed


def gate(**judge: Any) -> GateSection:
    return GateSection.model_validate({"judge": {"kind": "rule", "pattern": "^ok", **judge}})


def answers(*texts: str) -> list[GuardAnswer]:
    return [GuardAnswer(({"role": "user", "content": str(i)},), text, "stop") for i, text in enumerate(texts)]


def rows(*texts: tuple[str, bool]) -> list[Thumbed]:
    return [Thumbed(f"u{i % 20}", ({"role": "user", "content": "?"},), *text) for i, text in enumerate(texts)]


NEW, OLD = answers(*["ok"] * 12, *["no"] * 8), answers(*["no"] * 10, *["ok"] * 6, *["no"] * 4)
KNOWS = rows(*[("ok", True), ("no", False)] * 30)
BLIND = rows(*[("ok", True), ("no", False), ("no", True), ("ok", False)] * 15)


class Fails(RuleJudge):
    """A rule that has nothing to say of some answers; it counts what it was asked."""

    def __init__(self, section: GateSection, silent: Sequence[str]) -> None:
        assert section.judge is not None
        super().__init__(section.judge)
        self.silent, self.asked = silent, 0

    def rate(self, messages: Sequence[Message], answer: str) -> float:
        self.asked += 1
        if answer in self.silent:
            raise Silent("it did not answer in time")
        return super().rate(messages, answer)


def test_nobody_is_asked_where_there_is_no_judge() -> None:
    assert opinion(GateSection(), NEW, OLD, KNOWS) == Opinion()
    assert against(GateSection(), {}) == ([], []) and words(GateSection(), {}) == ()


def test_the_win_rate_counts_ties_one_half() -> None:
    """10 wins, 4 losses, and of the other 6 both or neither match."""
    figures = opinion(gate(), NEW, OLD, KNOWS).figures
    assert (figures["judge_win_rate"], figures["n_judged"], figures["judge_ties"]) == (0.65, 20.0, 6.0)
    exact = binomtest(13, 20).proportion_ci(0.75)
    assert (figures["judge_win_rate_low"], figures["judge_win_rate_high"]) == pytest.approx((exact.low, exact.high))


def test_a_few_prompts_are_the_same_ones_every_time() -> None:
    once, again = (opinion(gate(prompts=7), NEW, OLD, KNOWS).figures for _ in range(2))
    assert once == again and once["n_judged"] == 7.0


def test_agreement_is_how_ratings_tell_thumbs_apart() -> None:
    figures = opinion(gate(), NEW, OLD, KNOWS).figures
    assert (figures["judge_agreement"], figures["judge_agreement_low"], figures["n_judge_rows"]) == (1.0, 1.0, 60.0)
    assert words(gate(), figures)[1].startswith("the judge agrees with this team's users: its ratings of 60 held-out")
    figures = opinion(gate(), NEW, OLD, BLIND).figures
    assert figures["judge_agreement"] == 0.5 and figures["judge_agreement_low"] <= 0.5
    told = words(gate(), figures)
    assert told[0] == (
        "judge: win rate against the champion 0.65 (75% interval 0.50 to 0.78) on 20 prompts, 6 of them ties"
    )
    assert told[1].startswith("this judge does not know this team's taste: its ratings of 60 held-out answers")
    assert told[1].endswith("which does not surely exceed one half")


@pytest.mark.parametrize(
    ("held", "rated", "why"),
    [
        (KNOWS, 0, "gate.judge.rows is 0"),
        (KNOWS[:14], 100, "held-out answers of 14 users only"),
        (rows(*[("ok", True)] * 30), 100, "all the held-out answers that it rated have the same thumb"),
    ],
)
def test_an_agreement_that_is_not_known_is_told(held: list[Thumbed], rated: int, why: str) -> None:
    found = opinion(gate(rows=rated), NEW, OLD, held)
    assert "judge_win_rate" in found.figures and "judge_agreement" not in found.figures
    (told,) = found.lacking
    assert told.startswith("whether the judge agrees with this team's users is not known") and why in told


def test_a_judge_that_is_silent_is_soon_asked_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    section = gate(at_once=1)
    silent = Fails(section, ["ok", "no"])
    monkeypatch.setattr(room, "judge_of", lambda _: silent)
    found = opinion(section, NEW, OLD, KNOWS)
    assert found.figures == {} and silent.asked == 3 + 7, "beyond a tenth of 20 prompts and of 60 rows"
    assert found.lacking == (
        "no win rate of the judge: it did not answer in time (after 3 of 20 questions it was asked no more)",
        "whether the judge agrees with this team's users is not known: it did not answer in time (after 7 of 60 "
        "questions it was asked no more)",
    )


def test_a_few_missing_opinions_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    section = gate(at_once=1)
    monkeypatch.setattr(room, "judge_of", lambda _: Fails(section, ["odd"]))
    found = opinion(section, [*NEW, *answers("odd", "odd")], [*OLD, *answers("no", "ok")], KNOWS)
    assert (found.figures["judge_win_rate"], found.figures["n_judged"]) == (0.65, 20.0) and found.lacking == ()


def decided(low: float, high: float, **judge: Any) -> tuple[list[str], list[str]]:
    names = ("judge_win_rate", "judge_win_rate_low", "judge_win_rate_high", "n_judged", "judge_ties")
    return against(gate(**judge), dict(zip(names, (0.5, low, high, 90.0, 0.0), strict=True)))


def test_a_win_rate_decides_only_where_a_least_one_is_set() -> None:
    assert decided(0.0, 0.1) == ([], [])
    (fails,), unsure = decided(0.3, 0.44, min_win_rate=0.45)
    assert not unsure and fails.startswith("the judge likes it less: win rate against the champion 0.50")
    assert fails.endswith("(75% interval 0.30 to 0.44) on 90 prompts lies below min_win_rate 0.45")
    nothing, (unsure_of,) = decided(0.44, 0.6, min_win_rate=0.45)
    assert not nothing and unsure_of.endswith("does not lie above min_win_rate 0.45")
    assert decided(0.45, 0.6, min_win_rate=0.45) == ([], [])
    assert against(gate(min_win_rate=0.45), {}) == (
        [],
        ["the judge's win rate is not known, and min_win_rate is 0.45"],
    )
