"""`kto-ray bench data`, small: a crowd whose feedback is known, frozen twice and streamed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kto_ray.people.filler import fill
from kto_ray.store import Store, labels, open_store

pytestmark = pytest.mark.integration


def stored(store: Store) -> list[tuple[str, str, str, bool]]:
    with store.read() as tx:
        found = [example for keys in labels.key_ranges(tx, 150) for example in labels.examples(tx, keys)]
    return [(e.id, e.user, e.answer, e.desirable) for e in found]


def test_the_crowd_says_the_same_for_the_same_seed_in_any_store(store: Store, tmp_path: Path) -> None:
    fill(store, 0, 400, 0, print)
    fill(store, 400, 1000, 0, print)
    rows = stored(store)
    assert len(rows) == len({row[0] for row in rows}) == 1000
    assert 0.55 < sum(desirable for *_, desirable in rows) / 1000 < 0.75
    assert len({answer for _, _, answer, _ in rows}) < 1000  # some repeat others
    other = open_store(f"sqlite:///{tmp_path}/other.db")
    fill(other, 0, 400, 1, print)
    assert stored(other) != rows[:400]
    fresh = open_store(f"sqlite:///{tmp_path}/fresh.db")
    fill(fresh, 0, 400, 0, print)
    fill(fresh, 400, 1000, 0, print)
    assert stored(fresh) == rows


@pytest.mark.slow
def test_a_small_bench_measures_all_that_has_a_bar(tmp_path: Path) -> None:
    sizes = ["--rows", "300", "--rows", "600", "--steps", "1", "--repeats", "1"]
    command = [sys.executable, "-m", "kto_ray", "bench", "data", *sizes, "--out", str(tmp_path), "--json"]
    done = subprocess.run(
        [*command, "--set", "data.max_length=64"],
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "data.json").read_text())
    assert json.loads(done.stdout) == report
    assert [size["examples"] for size in report["sizes"]] == [300, 600]
    assert all(0 < size["rows"] < size["examples"] for size in report["sizes"])
    assert all(abs(sum(size["stage_s"].values()) - size["build_s"]) < 0.1 for size in report["sizes"])
    assert report["met"].keys() == report["bars"].keys() <= report.keys()
    assert 0.1 < report["driver_peak_gib"] < 1.5 and report["step_memory_s"] > 0
    assert report["ray_cores"].keys() == {"stream", "memory", "control"} and report["control_cost_share"] > -1
