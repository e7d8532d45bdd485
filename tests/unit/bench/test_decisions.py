"""The benchmark of decisions, small: its report, its bars, its table; and its peers are what they say."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from kto_ray.bench import decisions, decisions_adversaries, decisions_life, decisions_test
from kto_ray.bench.decisions_trials import Trials, over, rules, share, voters
from kto_ray.bench.peeking import decided_at
from kto_ray.cli.bench import app
from kto_ray.config.deciding import RolloutSection
from kto_ray.records.trials import Exposed, Settled, Standing
from kto_ray.rollout import evidence, machine


def test_a_small_run_reports_each_figure_and_its_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions_life, "POOL", (60, 60))
    monkeypatch.setattr(decisions_life, "ROUNDS", 10)
    monkeypatch.setattr(decisions_test, "NULLS", (0.5,))
    monkeypatch.setattr(decisions_test, "GAINS", ((0.3, 0.5),))
    monkeypatch.setattr(decisions_test, "NULL_VOTERS", 500)
    monkeypatch.setattr(decisions_test, "TEAM_GAINS", ((0.5, 0.6),))
    monkeypatch.setattr(decisions_test, "FORESEEN", ((1000, 0.5, 0.05, 0.5),))
    monkeypatch.setattr(decisions_adversaries, "PER_DAY", 100)
    told = CliRunner().invoke(app, ["decisions", "--tests", "20", "--out", str(tmp_path), "--json"])
    report = json.loads(told.stdout)
    assert report == json.loads((tmp_path / "decisions.json").read_text())
    assert 0.4 < report["gains"][0]["at_5_ratio"] < report["gains"][0]["today_ratio"]
    assert report["team"][0]["score"]["share"] >= report["team"][0]["decided"]["share"] > 0.5
    assert report["foreseen"][0]["score"]["share"] >= report["foreseen"][0]["decided"]["share"] > 0.5
    assert 0.11 < report["foreseen"][0]["gain"] < 0.18
    assert report["adversaries"][2]["without"]["share"] > 0.9 > 0.3 > report["adversaries"][2]["with"]["share"]
    assert (
        report["met"]["0.3 against 0.5"]
        and not report["met"]["novelty, decided from day 0, evidence that was ever enough"]
    )
    console = Console(width=300)
    with console.capture() as shown:
        console.print(decisions.table(report))
    assert shown.get().count("MISSED") == sum(not met for met in report["met"].values())


def test_the_peer_is_the_confidence_sequence() -> None:
    """The closed form at no difference decides at the same voter as `peeking`, which asks the sequence itself."""
    drawn = voters(400, (0.3, 0.5))(np.random.default_rng(0), 30)
    arm, up = drawn.challenger, drawn.outcome == 1
    counts = np.cumsum(np.stack([~arm, ~arm & up, arm, arm & up], axis=-1), axis=1)
    expected = [decided_at(path, 0.05) or math.inf for path in counts]
    assert decisions_test.today(drawn, 0.05).tolist() == expected and np.isfinite(expected).any()


def test_what_is_drawn_is_what_was_asked_for() -> None:
    drawn = voters(200_000, (0.6, 0.7), weight=0.2, quieter=0.5)(np.random.default_rng(0), 1)
    arm, outcome = drawn.challenger[0], drawn.outcome[0]
    assert outcome[~arm].mean() == pytest.approx(0.6, abs=0.01)
    assert outcome[arm].mean() == pytest.approx(0.7 / 0.85, abs=0.01), "half of the unhappy keep still"
    assert arm.mean() == pytest.approx(0.2 * 0.85 / (0.8 + 0.2 * 0.85), abs=0.01)
    halves = over(voters(5, (0.5, 0.5)), 5, 7, 0, lambda t: t.outcome[:, 0])
    assert halves.shape == (7,)


def test_intervals_of_shares() -> None:
    hits = np.arange(100) < 5
    assert share(hits) == {
        "share": 0.05, "low_share": pytest.approx(0.0215, abs=1e-3),
        "high_share": pytest.approx(0.1118, abs=1e-3), "tests": 100,
    }  # fmt: skip


def decides(arm: np.ndarray[Any, Any], outcome: np.ndarray[Any, Any]) -> bool:
    """Whether the machine itself ever promotes, asked after each trial."""
    asks = RolloutSection(min_users=1, min_hours=0, guards=())
    state = machine.advance(asks, machine.start(asks, "policy@base", "policy@v1", "r1", "salt", 0.05, 0.0), 0.0)
    trials = [Settled(bool(a), float(o)) for a, o in zip(arm, outcome, strict=True)]
    for n in range(1, len(trials) + 1):
        seen = Exposed(n, n, observed=n)
        look = evidence.look(asks, state, Standing("r1", 1, seen, seen, tuple(trials[:n])), 1.0)
        if next(machine.lacking(asks, state, look, 1.0), None) is None:
            return True
    return False


def test_the_rule_that_is_simulated_is_the_machine_s() -> None:
    """Of luck, of gains, and of arms that were once surely unequal and are even again."""
    drawn = voters(150, (0.3, 0.65))(np.random.default_rng(2), 4)
    once = np.array([True] * 70 + [False] * 70 + [True, False] * 5)
    ups = np.concatenate([np.ones(70), np.arange(70) % 4 == 0, np.ones(10)])
    arm, outcome = np.vstack([drawn.challenger, once]), np.vstack([drawn.outcome, ups])
    found = [decides(*one) for one in zip(arm[:, :150], outcome, strict=True)]
    assert rules(Trials(arm, outcome))[:, 1].tolist() == found and found[-1] and not all(found)
