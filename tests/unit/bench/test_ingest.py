"""What `bench ingest` makes of what it measured, and that its writers write what they say."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from kto_ray.bench import autocommit, ingest
from kto_ray.bench.load import Loaded, closed, opened
from kto_ray.config import Config
from kto_ray.store import Store, open_store, tallies
from tests.support.engine import StandIn
from tests.support.served import served

RAW = {
    "writer_per_s": [900.0, 1000.0, 1100.0],
    "autocommit_per_s": [100.0, 200.0, 300.0],
    "ungrouped_per_s": [50.0] * 3,
    "saturated_per_s": [400.0] * 3,
    "ack_p50_ms": [2.0] * 3,
    "ack_p99_ms": [30.0, 19.0, 10.0],
    "chat_mean_ms": [5.0] * 3,
    "added_mean_ms": [1.0, 4.0, 3.5],
    "added_p99_ms": [2.0] * 3,
}


def test_medians_are_held_to_their_bars() -> None:
    found = ingest.figures(RAW)
    assert found["ratio"] == 5.0 and found["ratio_met"]
    assert found["ack_p99_ms"] == 19.0 and found["ack_p99_ms_met"]
    assert found["added_mean_ms"] == 3.5 and not found["added_mean_ms_met"]


def test_its_table_tells_the_bars() -> None:
    report = {"stores": {"sqlite": ingest.figures(RAW)}, "bars": ingest.BARS, "repeats": 3, "chats_per_s": 200.0}
    shown = io.StringIO()
    Console(file=shown, width=200).print(ingest.table(report))
    assert "at least 5" in shown.getvalue() and "19.0" in shown.getvalue()


def test_each_writer_stores_all_that_it_counts(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/kto.db"
    rates = autocommit.at_the_store(lambda: url, 64, "t")
    assert all(rate > 0 for rate in rates.values())
    store = open_store(url)
    with store.read() as tx:
        told = tallies.total(tx)
    store.close()
    assert (told.completions, told.stored, told.up) == (64 + 8,) * 3, "autocommit counts nothing"


@pytest.mark.parametrize("share, ms", [(0.0, 1.0), (0.5, 51.0), (0.99, 100.0), (1.0, 100.0)])
def test_percentiles_are_of_what_was_measured(share: float, ms: float) -> None:
    assert Loaded(1.0, tuple(map(float, range(100, 0, -1))), 0).percentile_ms(share) == ms


def test_a_load_asks_as_often_as_it_says(sqlite_store: Store, tmp_path: Path, free_port: Callable[[], int]) -> None:
    port = free_port()
    config = Config(home=str(tmp_path)).model_copy(update={"http": Config().http.model_copy(update={"port": port})})
    with served(config, sqlite_store, StandIn()):
        most = asyncio.run(closed(port, ingest._chat, at_once=2, seconds=0.3))
        some = asyncio.run(opened(port, ingest._chat, per_s=50, seconds=1.0, seed=1))
    assert most.failed == some.failed == 0 and most.per_s > 0 and 25 < len(some.took_ms) < 80
    with sqlite_store.read() as tx:
        assert tallies.total(tx).completions == len(most.took_ms) + len(some.took_ms)
