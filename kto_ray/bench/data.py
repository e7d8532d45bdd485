"""`kto-ray bench data`: snapshots of growing stores, and what streaming one into training costs.

One store grows from size to size, and each size is frozen in a fresh process with a Ray of its own: seconds by stage,
and the peak memory of that process, which decides what enters. Nobody else makes such snapshots, so they have no peer.
The peer of the stream is the same rows as tables in memory, in front of the same training steps, waits for the rows
included, and with the reference cached. After trainings that are not counted the sources take turns, each as often
first, and a step is compared with the same step, since steps differ in length. A stream's start counts as what it is,
once in an epoch. Equal turns differ by more than the bar; so memory takes part twice, which shows what of a difference
is noise, and the cores are counted that Ray uses beside the training.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from statistics import linear_regression, median
from typing import Any

from rich.table import Table

from kto_ray.bench.own_process import ask
from kto_ray.cluster import cpu_compute
from kto_ray.config import Config
from kto_ray.people.filler import fill
from kto_ray.store import open_store, tallies

SOURCES = ("stream", "memory", "control")
BARS = {"driver_peak_gib": 1.5, "time_slope": 1.1, "stream_cost_share": 0.03}


@dataclass(frozen=True, slots=True)
class Built:
    """A freeze. Peaks are resident memory, shared pages of Ray's object store included."""

    snapshot: str
    rows: int  # of both splits
    build_s: float
    stage_s: dict[str, float]
    driver_peak_gib: float
    worker_peak_gib: float  # of the largest Ray worker that was seen


@dataclass(frozen=True, slots=True)
class Fed:
    """Training steps after the first, with the reference cached: seconds of each, and of the waits for their rows."""

    step_s: list[float]
    wait_s: list[float]
    first_wait_s: float  # starting the stream and reading ahead, once an epoch
    ray_cores: float  # that other processes, Ray's, used meanwhile


@dataclass(frozen=True, slots=True)
class Streamed:
    stream: list[Fed]
    memory: list[Fed]
    control: list[Fed]  # memory once more
    drained_us: dict[str, float]  # by source, for a micro-batch when nothing trains: a trainer of no cost would wait it
    epoch_steps: int


def bench_data(
    config: Config, sizes: Sequence[int], steps: int, repeats: int, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Measure.

    Args:
        config: all but home counts; a store_url must name an empty store, and is filled.
        sizes: stored examples to freeze; at least two.
        steps: measured training steps of a repeat, with each of the two sources.

    Raises:
        ValueError: fewer than two sizes, or the store is not empty.
        RuntimeError: a measuring process failed; its last words are in the message.
    """
    sizes = sorted(set(sizes))
    if len(sizes) < 2:
        raise ValueError(f"bench data wants at least two sizes to see how time grows, got {sizes}; give --rows twice")
    with tempfile.TemporaryDirectory() as home:
        data = config.data.model_copy(update={"max_rows": sizes[-1]})  # nothing is left out of a window
        config = config.model_copy(update={"home": home, "data": data})
        _refuse_a_used_store(config)
        generated, built, had = [], [], 0
        for size in sizes:
            generated.append(_grow(config, had, size, tell))
            had = size
            built.append(Built(**_in_process(config, {"what": "build"})))
            tell(_told(size, built[-1]))
        work = {"what": "stream", "snapshot": built[-1].snapshot, "steps": steps, "repeats": repeats}
        streamed = _in_process(config, work)
    by_source = {name: [Fed(**one) for one in streamed[name]] for name in SOURCES}
    fed = Streamed(**by_source, drained_us=streamed["drained_us"], epoch_steps=streamed["epoch_steps"])
    report = _report(config, sizes, generated, built, fed)
    return report


def _refuse_a_used_store(config: Config) -> None:
    store = open_store(config.database_url)
    with store.read() as tx:
        held = tallies.total(tx).completions
    store.close()
    if held:
        raise ValueError(
            f"the store that bench data should fill holds {held} completions already; name an empty database"
        )


def _grow(config: Config, had: int, size: int, tell: Callable[[str], None]) -> float:
    began = time.perf_counter()
    store = open_store(config.database_url)
    fill(store, had, size, config.data.seed, tell, config.model)
    store.close()
    return time.perf_counter() - began


def _in_process(config: Config, work: dict[str, Any]) -> dict[str, Any]:
    environment = cpu_compute(config.train.threads) if work["what"] == "stream" else {}
    request = {"work": work, "config": config.model_dump(mode="json")}
    return ask("kto_ray.bench.inside.data", request, environment, work["what"])


def _told(size: int, built: Built) -> str:
    stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in built.stage_s.items())
    peak = f"driver {built.driver_peak_gib:.2f} GiB"
    return f"{size} examples: {built.rows} rows in {built.build_s:.1f} s, {peak}; {stages}"


def _report(
    config: Config, sizes: Sequence[int], generated: Sequence[float], built: Sequence[Built], fed: Streamed
) -> dict[str, Any]:
    slope = linear_regression([math.log(n) for n in sizes], [math.log(b.build_s) for b in built]).slope
    seconds = {name: sum(_each(getattr(fed, name))) for name in SOURCES}
    first_wait_s = median(one.first_wait_s for one in fed.stream)
    epoch_s = fed.epoch_steps * seconds["memory"] / len(fed.memory[0].step_s)
    waits = {name: median(_mean(one.wait_s) for one in getattr(fed, name)) for name in SOURCES}
    ray_cores = {name: median(one.ray_cores for one in getattr(fed, name)) for name in SOURCES}
    figures = {
        "driver_peak_gib": max(b.driver_peak_gib for b in built),
        "time_slope": slope,
        "stream_cost_share": seconds["stream"] / seconds["memory"] - 1 + first_wait_s / epoch_s,
    }
    return {
        "store": "sqlite" if config.database_url.startswith("sqlite") else "postgresql",
        "sizes": [
            {"examples": n, "generate_s": s, "rows_per_s": n / b.build_s, **asdict(b)}
            for n, s, b in zip(sizes, generated, built, strict=True)
        ],
        **figures,
        "stream_cost_share_by_repeat": [
            sum(_each([streamed])) / sum(_each([held])) - 1
            for streamed, held in zip(fed.stream, fed.memory, strict=True)
        ],
        "control_cost_share": seconds["control"] / seconds["memory"] - 1,
        "ray_cores": ray_cores,
        "step_memory_s": seconds["memory"] / len(fed.memory[0].step_s),
        "wait_stream_ms": 1e3 * waits["stream"],
        "wait_memory_ms": 1e3 * waits["memory"],
        "first_wait_stream_s": first_wait_s,
        "epoch_steps": fed.epoch_steps,
        "drained_us": fed.drained_us,
        "micro_batch": config.kto.micro_batch,
        "bars": BARS,
        "met": {name: figures[name] <= bar for name, bar in BARS.items()},
        "peers": {"snapshot": "none", "stream": "the same rows as tables in memory"},
        "versions": {name: version(name) for name in ("ray", "pyarrow", "numpy", "datasketch", "transformers")},
        "raw": asdict(fed),
    }


def _each(fed: Sequence[Fed]) -> list[float]:
    """Seconds of each step and of the wait before it: the median over the repeats."""
    repeats = [[step + wait for step, wait in zip(one.step_s, one.wait_s, strict=True)] for one in fed]
    return [median(of_step) for of_step in zip(*repeats, strict=True)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def table(report: dict[str, Any]) -> Table:
    """The snapshots, a row a size."""
    marks = ", ".join(
        f"{name} {report[name]:.3g} (bar {bar:g}{'' if report['met'][name] else ', MISSED'})"
        for name, bar in report["bars"].items()
    )
    shown = Table("examples", "rows", "build", "rows/s", "driver peak", "worker peak", title=marks)
    for size in report["sizes"]:
        peaks = (f"{size['driver_peak_gib']:.2f} GiB", f"{size['worker_peak_gib']:.2f} GiB")
        cells = (str(size["examples"]), str(size["rows"]), f"{size['build_s']:.1f} s", f"{size['rows_per_s']:.0f}")
        shown.add_row(*cells, *peaks)
    return shown
