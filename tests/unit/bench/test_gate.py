"""The simulation of the gate: its truths are as told, its intervals exact, and the gate keeps its bars on it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from kto_ray.bench import gate as bench
from kto_ray.cli import app
from kto_ray.config.deciding import GateSection
from kto_ray.records.evaluation import GateDecision
from kto_ray.stats.ranking import auc

SECTION = GateSection(bootstrap=200)


def test_holdouts_are_of_the_worth_that_is_told() -> None:
    random = np.random.default_rng(1)
    truth = bench.Truth("", 0.7, 0.8, users=6000)
    candidate, champion, labels, users, lengths = bench.held_out(truth, random)
    assert auc(candidate[labels], candidate[~labels]) == pytest.approx(0.8, abs=0.015)
    assert auc(champion[labels], champion[~labels]) == pytest.approx(0.7, abs=0.015)
    assert auc(lengths[labels], lengths[~labels]) == pytest.approx(0.567, abs=0.015)
    assert len(users) / 6000 == pytest.approx(3, abs=0.1)
    down = np.flatnonzero(~labels)
    assert np.corrcoef(candidate[down], champion[down])[0, 1] == pytest.approx(bench.SHARED, abs=0.04)


def test_a_drift_against_the_base_has_no_worth_beyond_length() -> None:
    truth = bench.Truth("", 0.5, 0.5, drift=1.0, toward=True, users=6000)
    candidate, champion, labels, _, lengths = bench.held_out(truth, np.random.default_rng(2))
    assert not champion.any()
    assert auc(candidate[labels], candidate[~labels]) > 0.53
    rest = candidate - np.log(lengths) * np.polyfit(np.log(lengths), candidate, 1)[0]
    assert auc(rest[labels], rest[~labels]) == pytest.approx(0.5, abs=0.02)


def passed(truth: bench.Truth, lifetimes: int) -> float:
    random = np.random.default_rng(3)
    return float(
        np.mean([bench.verdict(SECTION, truth, random)[0] is GateDecision.PROMOTE_TO_CANARY for _ in range(lifetimes)])
    )


def test_what_is_no_better_seldom_passes_and_what_is_better_mostly_does() -> None:
    """Lower bounds too: a gate that passed nobody would keep the first bar."""
    assert 0.05 < passed(bench.Truth("", 0.7, 0.7), 300) < 0.2
    assert 0.04 < passed(bench.Truth("", 0.7, 0.7, users=15), 300) < 0.2
    assert passed(bench.Truth("", 0.5, 0.5, drift=1.0), 300) < 0.16
    assert passed(bench.Truth("", 0.7, 0.65), 300) < 0.05
    assert passed(bench.Truth("", 0.7, 0.8), 300) > 0.85
    assert passed(bench.Truth("", 0.7, 0.9, users=14), 20) == 0.0, "too few users are never enough"


def test_the_checks_pass_equals_and_seldom_those_who_fail_the_margin_more() -> None:
    equal, worse, broken = (bench.checked(SECTION, *shares) for shares in ((0.1, 0.1), (0.2, 0.1), (0.4, 0.05)))
    assert equal["passed_share"] > 0.9
    assert 0.02 < worse["passed_share"] <= 0.05, "the level, at the margin"
    assert broken["passed_share"] < 1e-6 and broken["rejected_share"] > 0.999


def test_the_command_counts_verdicts_and_shows_the_bars(tmp_path: Path) -> None:
    told = CliRunner().invoke(
        app, ["bench", "gate", "--lifetimes", "10", "--resamples", "200", "--out", str(tmp_path), "--json"]
    )
    report = json.loads(told.stdout)
    assert report == json.loads((tmp_path / "gate.json").read_text())
    assert [row["name"] for row in report["truths"]] == [truth.name for truth in bench.TRUTHS]
    for row in report["truths"]:
        assert row["passed_share"] + row["rejected_share"] + row["cannot_tell_share"] == pytest.approx(1)
        assert row["passed_low"] <= row["passed_share"] <= row["passed_high"]
    console = Console(width=250)
    with console.capture() as shown:
        console.print(bench.table(report))
    for row in report["checks"]:
        assert row["passed_share"] + row["rejected_share"] + row["cannot_tell_share"] == pytest.approx(1)
    assert "200 checks: 5% lost, 5% won" in shown.get()
    assert "at least 90%: " in shown.get() and "at most 15%: " in shown.get()
