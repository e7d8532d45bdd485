"""What a demo says where there is no terminal: lines, with what a user wrote kept as it is."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from kto_ray.demo.report import Condition
from kto_ray.demo.show import Narrator
from kto_ray.demo.words import rollout_words, round_words


@pytest.fixture
def told() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def narrator(told: io.StringIO) -> Narrator:
    return Narrator(Console(file=told, width=140))


def test_a_phase_says_what_comes_and_leaves_its_last_words(narrator: Narrator, told: io.StringIO) -> None:
    with narrator.phase("round", "it trains", "an A/B test") as bar:
        bar.show(1, None, "[red]step 1")
        bar.show(2, None, "step 2 of [2]")
    lines = told.getvalue()
    assert "[3/6] round: it trains" in lines and "next: an A/B test" in lines
    assert "step 2 of [2]" in lines and "step 1" not in lines, "not every word where nobody watches"


def test_answers_times_and_verdict(narrator: Narrator, told: io.StringIO) -> None:
    narrator.answers([{"question": "Why [b]?", "before": "x", "after": "y"}])
    narrator.times({"start": 3.0, "total": 5.0})
    narrator.verdict([Condition(True, "it came to its end"), Condition(False, "3 failed")], ["report.json"])
    words = told.getvalue()
    assert "Why [b]?" in words and "Took 5 s: start 3." in words and "report.json" in words
    assert "not met: 3 failed" in words and "not met: it came" not in words


def test_the_words_of_a_round_and_of_a_test() -> None:
    this = {"stage": "train", "stage_started_at": time.time() - 5, "attempts": 1, "reason": "a node was lost"}
    figures = {"step": 3, "steps": 9, "loss": 0.5, "tokens_per_s": 80.0}
    done, total, words = round_words({**this, "train_metrics": figures}, "load")
    assert (done, total) == (3, 9) and "step 3/9, loss 0.500" in words and "attempt 2, after a node was lost" in words
    assert round_words({**this, "train_metrics": {}}, "load")[1] is None, "nothing to count yet"
    counts = {"ab": {"champion": {"users": 4, "up": 1}, "challenger": {"users": 5, "up": 4}}}
    live = {"counts": counts, "stage_name": "ab", "interval": (-0.1, 0.6)}
    assert rollout_words(live) == (9, "ab: champion 1/4 up, challenger 4/5 up, difference in [-0.10, +0.60]")
    assert rollout_words({**live, "stage_name": "canary"})[0] == 0
