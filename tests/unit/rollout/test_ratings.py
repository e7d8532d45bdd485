"""Ratings that answers ask for: whose turn it is, and what they show."""

from __future__ import annotations

import pytest

from kto_ray.records.rollouts import ArmCount
from kto_ray.records.trials import Exposed
from kto_ray.rollout.ratings import asks, ratings
from kto_ray.stats import sequential


def test_the_draw_is_of_the_share_and_of_nothing_but_the_id() -> None:
    names = [f"chatcmpl-{i}" for i in range(4000)]
    drawn = {name for name in names if asks("salt", name, 0.1)}
    assert 340 < len(drawn) < 460
    assert drawn == {name for name in names if asks("salt", name, 0.1)}
    assert drawn < {name for name in names if asks("salt", name, 0.2)}
    assert len(drawn & {name for name in names if asks("another", name, 0.1)}) < 80
    assert not any(asks("salt", name, 0.0) for name in names)


def test_they_show_a_difference_among_those_who_answer() -> None:
    champion = Exposed(900, 900, observed=900, solicited=400, rated=300, rated_up=150)
    challenger = Exposed(900, 900, observed=900, solicited=400, rated=310, rated_up=240)
    found = ratings(champion, challenger, 0.05)
    assert found is not None and found.confidence == pytest.approx(0.95)
    assert found.difference == sequential.interval(ArmCount(300, 150), ArmCount(310, 240), 0.05)
    assert found.difference[0] > 0 and found.response[0] < 0 < found.response[1]
    assert found.words.startswith("240 up of 310 who answered of 400 asked, against the champion's 150 of 300 of 400")
    assert "not to be compared" not in found.words


@pytest.mark.parametrize(("rated", "who"), [(120, "fewer"), (390, "more")])
def test_where_surely_more_of_one_arm_answer_the_words_hold(rated: int, who: str) -> None:
    champion = Exposed(solicited=400, rated=300, rated_up=150)
    found = ratings(champion, Exposed(solicited=400, rated=rated, rated_up=rated // 2), 0.05)
    assert found is not None and f"not to be compared, for surely {who} of the challenger's users answer" in found.words


def test_where_nobody_was_asked_there_are_none() -> None:
    assert ratings(Exposed(9, 9, observed=9), Exposed(), 0.05) is None
