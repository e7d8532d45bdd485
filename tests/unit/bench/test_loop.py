"""A turnaround's parts, of a round as the API shows it, add up to the time from the thumb to the token."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from kto_ray.bench import loop
from kto_ray.bench.loop import Turnaround, figures, turnaround

ROUND = {
    "started_at": 101.5,
    "stage_started_at": 199.0,
    "stage_s": {"snapshot": 7.5, "train": 60.0, "load": 10.0, "gate": 20.0},
    "train_metrics": {"train_s": 45.0, "steps": 30},
}


def test_the_parts_of_a_round_add_up() -> None:
    found = turnaround(100.0, ROUND, 200.0)
    assert found == Turnaround(1.5, 7.5, 60.0, 10.0, 20.0, 1.0, 45.0)
    assert found.whole_s == 100.0 and found.ratio == pytest.approx(100 / 80)
    assert found.ratio_of_steps == pytest.approx(100 / 65), "whatever of training is no step is the loop's"


def test_medians_are_held_to_the_bar_and_shown() -> None:
    quick, slow = turnaround(100.0, ROUND, 199.5), turnaround(80.0, ROUND, 200.0)
    report = figures([quick, slow, slow])
    assert report["ratio"] == pytest.approx(1.5) and not report["ratio_met"]
    assert report["ratio_of_steps"] == pytest.approx(120 / 65)
    assert figures([quick])["ratio_met"] and report["begins_s"] == 21.5
    shown = io.StringIO()
    Console(file=shown, width=120).print(loop.table({"labels": 64, "dtype": "float32", "rounds": [1, 2, 3], **report}))
    assert "1.50" in shown.getvalue() and "bar 1.25" in shown.getvalue()
