"""What is made of answers without a model: checks lost and won, what a report keeps, and which rows an off-policy
estimate takes."""

from __future__ import annotations

import numpy as np
import pytest

from kto_ray.config import Config
from kto_ray.evaluate.measure import KEPT, check_metrics, off_policy, shown
from kto_ray.records.evaluation import GuardAnswer, HeldOut, Tokens


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


def row(i: int, adapter: str = "policy@v1", source: str = "thumb", up: bool = True, length: int = 4) -> HeldOut:
    return HeldOut(f"e{i}", f"u{i % 20}", up, Tokens((1,) * (length - 1), (2,)), f"c{i}", adapter, source)


def test_an_off_policy_estimate_takes_what_the_champion_said_and_its_users_judged() -> None:
    config = Config()
    others = [
        row(0, adapter="policy@base"),
        row(1, source="edit", up=True),
        row(2, source="reviewer"),
        row(3, source="import"),
        row(4, length=config.data.max_length),
    ]
    own = [row(i, source="edit" if i % 10 == 0 else "thumb", up=i % 10 > 4) for i in range(200)]
    logs = np.array([9.0] * 5 + [np.log(3.0) if r.desirable else 0.0 for r in own])
    found = off_policy(config, [*others, *own], logs, "policy@v1")
    assert (found["n_offpolicy"], found["ess"]) == pytest.approx((200.0, 400**2 / 1000))
    assert found["offpolicy_gain"] == pytest.approx(0.25) and found["offpolicy_gain_low"] < 0.25
    assert off_policy(config, [*others, *own], logs, "policy@v2") == {"n_offpolicy": 0.0, "ess": 0.0}
    few = off_policy(config, own[:90], logs[5:95], "policy@v1")
    assert few["n_offpolicy"] == 90.0 and "offpolicy_gain" not in few
