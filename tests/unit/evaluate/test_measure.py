"""What is made of guard answers without a model: checks lost and won, shares by tag, and what a report keeps."""

from __future__ import annotations

import pytest

from kto_ray.evaluate.measure import KEPT, check_metrics, shown
from kto_ray.records.evaluation import GuardAnswer


def answer(prompt: str, right: bool | None, tag: str = "fact", weight: float = 1.0, text: str = "x") -> GuardAnswer:
    return GuardAnswer(({"role": "user", "content": prompt},), text, "stop", right=right, tag=tag, weight=weight)


NEW = [answer("a", True), answer("b", False, weight=3), answer("c", True, "refusal"), answer("d", None)]
OLD = [answer("a", True), answer("b", True, weight=3), answer("c", False, "refusal"), answer("d", None)]


def test_pairs_are_counted_and_shares_are_weighted() -> None:
    found = check_metrics(NEW, OLD)
    assert (found["n_checks"], found["checks_lost"], found["checks_won"]) == (3.0, 1.0, 1.0)
    found = check_metrics([*NEW, answer("e", False)], [*OLD, answer("e", True)])
    assert (found["n_checks"], found["checks_lost"], found["checks_won"]) == (4.0, 2.0, 1.0)
    found = check_metrics(NEW, OLD)
    assert (found["right"], found["right_champion"]) == pytest.approx((2 / 5, 4 / 5))
    assert (found["right_fact"], found["right_fact_champion"]) == (0.25, 1.0)
    assert (found["right_refusal"], found["right_refusal_champion"]) == (1.0, 0.0)


def test_answers_without_checks_say_nothing_of_them() -> None:
    assert check_metrics(NEW[3:], OLD[3:]) == {"n_checks": 0.0, "checks_lost": 0.0, "checks_won": 0.0}


def test_a_report_keeps_first_what_was_lost() -> None:
    kept = shown(NEW, OLD)
    assert [entry["prompt"] for entry in kept] == ["b", "a", "c", "d"]
    assert [entry.get("right") for entry in kept] == ["champion", "both", "candidate", None]
    assert kept[0] == {"prompt": "b", "champion": "x", "candidate": "x", "tag": "fact", "right": "champion"}
    many = [answer(str(i), i != 90) for i in range(100)]
    kept = shown(many, [answer(str(i), True) for i in range(100)])
    assert len(kept) == KEPT and kept[0]["prompt"] == "90"
