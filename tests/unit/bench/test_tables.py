"""What benchmarks make of what they measured: who learns from what in a chain of rounds, ratios, and their tables."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from kto_ray.bench import chat, data, rounds, train
from kto_ray.bench.data import Built, Fed, Streamed
from kto_ray.bench.experiment import Found, Work
from kto_ray.bench.train import BARS, VARIANTS, Measured
from kto_ray.config import Config


def told(table: Table) -> str:
    shown = io.StringIO()
    Console(file=shown, width=200).print(table)
    return shown.getvalue()


def test_a_chain_learns_from_its_round_and_the_base_from_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    works: list[Work] = []

    def kept(folder: Path, config: Config, work: Work, words: str, tell: Any) -> Found:
        works.append(work)
        n = len(work.ask)
        return Found(1.0, [], [], [], [("Short. Answer.", "stop")] * n, [-2.0] * n, [-3.0] * n, [4] * n)

    monkeypatch.setattr(rounds, "kept", kept)
    report = rounds.bench_rounds(Config(), "short", 2, 16, 16, str(tmp_path), lambda words: None)
    base, champion = works[:3], works[3:]
    assert [work.method for work in base] == ["none", "kto", "kto"]
    assert base[2].train[: len(base[1].train)] == base[1].train and len(base[2].train) > len(base[1].train)
    assert len(champion[2].train) < len(base[2].train)
    assert [work.start for work in base] == [None] * 3 and champion[1].start is None
    assert champion[2].start == champion[1].save
    assert report["base"][1]["kl_base_nats_per_token"] == pytest.approx(16 / 64)
    assert "0.250" in told(rounds.table(report)) and "champion" in told(rounds.table(report))


def test_ratios_to_the_peers_are_of_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = dict(zip(VARIANTS, (1.0, 2.0, 4.0), strict=True))
    found: dict[str, list[Measured]] = {
        v: [Measured([s] * 2, 200, 2 * s, 0.5, 10**6, 1e12)] * 3 for v, s in seconds.items()
    }
    figures = train._figures(found)
    assert figures["exact_tokens_per_s"] == 100.0 and figures["exact_first_epoch_tokens_per_s"] == 50.0
    peers = [v for v in VARIANTS if v in BARS]
    assert [figures[f"vs_{peer}_ratio"] for peer in peers] == [seconds[peer] for peer in peers]
    assert "(2.00, bar" in told(train.table({"sets": {"human": figures}, "repeats": 3}))


def test_processes_are_counted_by_name() -> None:
    assert isinstance(chat._cpu_seconds(), Counter) and sum(chat._cpu_seconds().values()) > 0
    report = {"users": 24, "answers_per_s": 2.94, "shares_ratio": {"ray::Worker": 0.77}, "worker_share_bar": 0.85}
    words = told(chat.table(report))
    assert "77.0%" in words and "24 users, 2.9 answers/s" in words and "85%" in words


def test_what_a_stream_costs_is_against_memory_and_its_start_is_spread_over_an_epoch() -> None:
    def fed(step_s: float) -> list[Fed]:
        return [Fed([step_s] * 4, [0.0] * 4, 2.0, 0.5)] * 3

    built = [Built("s", n, seconds, {"read": 1.0}, 0.8, 0.5) for n, seconds in ((900, 10.0), (9000, 100.0))]
    streamed = Streamed(fed(1.1), fed(1.0), fed(1.0), {"stream": 9.0, "memory": 1.0}, epoch_steps=100)
    report = data._report(Config(), [1000, 10_000], [1.0, 9.0], built, streamed)
    assert report["time_slope"] == pytest.approx(1.0) and report["control_cost_share"] == 0.0
    assert report["stream_cost_share"] == pytest.approx(0.1 + 2.0 / 100)
    assert report["met"] == {"driver_peak_gib": True, "time_slope": True, "stream_cost_share": False}
    assert "stream_cost_share 0.12 (bar 0.03, MISSED)" in told(data.table(report))
