"""The figures of runs side by side: what a run has, and what one lacks that ended early."""

from __future__ import annotations

import io

from rich.console import Console

from kto_ray.demo.figures import figures, table
from tests.unit.demo.test_report import good_report


def test_a_whole_run_beside_one_without_a_round() -> None:
    measured = {"commit": "abc1234", "took_s": 1.0}
    whole = {**good_report(), "measured": measured}
    whole["rounds"][0]["gate"]["metrics"] = {"auc": 0.71, "auc_low": 0.6, "auc_high": 0.8, "kl_base": 0.2}
    whole["rounds"][0]["rollout"]["history"] = [
        {"n_champion": 50, "up_champion": 9, "n_challenger": 48, "up_challenger": 31}
    ]
    none = {**whole, "rounds": [], "tuned": {}, "thumbs_up_rate": {**whole["thumbs_up_rate"], "ci95": None}}
    runs = [figures(whole), figures(none)]
    told = io.StringIO()
    Console(file=told, width=200).print(table(runs))
    words = told.getvalue()
    assert "20.0% of 30; 55.0% of 40" in words and "0.71 (0.60 to 0.80); 0.20" in words
    assert "9 of 50; 31 of 48; promoted" in words and "none; None" in words
    assert "0 of 265" in words and "90; 90" in words and "2, 182 s" in words
    assert "the demo's" in words and "the defaults" in words
