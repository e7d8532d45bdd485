"""`kto-ray bench ingest`: what the log takes, at the store and over HTTP, and what a durable answer costs.

At the store, many callers each keep an answer and then judge it, through the one writer. The peer is plain autocommit:
an INSERT of the same columns and a commit each, by the same library on the same disk, at its best number of threads; it
joins nothing and makes no labels. `ungrouped` does all that the writer does, a transaction each. Over HTTP the gateway
runs in a process of its own, over an engine that answers at once; times are from when a request was due.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import httpx
from rich.table import Table

from kto_ray.bench import postgres
from kto_ray.bench.autocommit import ASKED, CALLERS, at_the_store, fdatasync_ms, pairs_of
from kto_ray.bench.load import Loaded, Request, closed, opened
from kto_ray.config import Config
from kto_ray.store import Store, completions, open_store

AT_ONCE = 64  # clients that saturate the gateway
CHATS_PER_S = 200.0
BARS = {"ratio": 5.0, "ack_p99_ms": 20.0, "added_mean_ms": 3.0, "added_p99_ms": 10.0}  # the first from below
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Sizes:
    answers: int  # of a run at the store, each with a thumb
    seconds: float  # of a load over HTTP
    repeats: int


def bench_ingest(config: Config, url: str | None, sizes: Sizes, tell: Tell) -> dict[str, Any]:
    """Measure.

    Args:
        url: of an empty PostgreSQL database; None starts a server where one is installed, and else leaves it out.
    """
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, fresh in _databases(Path(folder), url):
            tell(name)
            found[name] = _measure(config, Path(folder), fresh, sizes, tell)
        synced_ms = fdatasync_ms(Path(folder))
    return {
        **asdict(sizes),
        "callers": CALLERS,
        "chats_per_s": CHATS_PER_S,
        "stores": found,
        "bars": BARS,
        "fdatasync_ms": synced_ms,
        "versions": {name: version(name) for name in ("sqlalchemy", "psycopg", "fastapi", "uvicorn")},
    }


def table(report: Mapping[str, Any]) -> Table:
    """A row a figure, a column a database."""
    shown = Table("", *report["stores"], "bar", title=f"medians of {report['repeats']}")
    bars = report["bars"]

    def row(words: str, name: str, digits: int, bar: str = "") -> None:
        shown.add_row(words, *(f"{one[name]:,.{digits}f}" for one in report["stores"].values()), bar)

    row("writer, answers and events/s", "writer_per_s", 0)
    row("autocommit: an INSERT and a commit each", "autocommit_per_s", 0)
    row("all that the writer does, a transaction each", "ungrouped_per_s", 0)
    row("writer over autocommit", "ratio", 1, f"at least {bars['ratio']:.0f}")
    row("feedback over HTTP, saturated, events/s", "saturated_per_s", 0)
    row("acknowledged at half of that: median, ms", "ack_p50_ms", 1)
    row("99%, ms", "ack_p99_ms", 1, f"at most {bars['ack_p99_ms']:.0f}")
    row(f"{report['chats_per_s']:.0f} chats/s, durable: mean, ms", "chat_mean_ms", 1)
    row("added by it: mean, ms", "added_mean_ms", 1, f"at most {bars['added_mean_ms']:.0f}")
    row("added to the 99%, ms", "added_p99_ms", 1, f"at most {bars['added_p99_ms']:.0f}")
    return shown


def figures(raw: Mapping[str, list[float]]) -> dict[str, Any]:
    """Medians, each held to its bar."""
    mid = {name: median(values) for name, values in raw.items()}
    mid["ratio"] = mid["writer_per_s"] / mid["autocommit_per_s"]
    met = {f"{name}_met": mid[name] >= bar if name == "ratio" else mid[name] <= bar for name, bar in BARS.items()}
    return {**mid, **met, "raw": dict(raw)}


def _databases(folder: Path, url: str | None) -> Iterator[tuple[str, Callable[[], str]]]:
    """Name -> what gives the URL of an empty store."""
    count = itertools.count()

    def file() -> str:
        return f"sqlite:///{folder}/{next(count)}/kto.db"

    yield "sqlite", file
    if url is not None:
        yield "postgresql", partial(str, url)
    elif postgres.binaries() is not None:
        with postgres.server() as server:
            yield "postgresql", lambda: server.empty(f"bench_{next(count)}")


def _measure(config: Config, folder: Path, fresh: Callable[[], str], sizes: Sizes, tell: Tell) -> dict[str, Any]:
    raw: dict[str, list[float]] = {}
    for repeat in range(sizes.repeats):
        once = at_the_store(fresh, sizes.answers, str(repeat))
        once |= _over_http(config.model_copy(update={"home": str(folder / f"home-{repeat}")}), fresh, sizes, repeat)
        for name, value in once.items():
            raw.setdefault(name, []).append(value)
        tell(
            f"{repeat + 1}/{sizes.repeats}: writer {once['writer_per_s']:.0f}/s, autocommit "
            f"{once['autocommit_per_s']:.0f}/s, saturated {once['saturated_per_s']:.0f}/s, ack p99 "
            f"{once['ack_p99_ms']:.1f} ms, chat +{once['added_mean_ms']:.1f} ms, p99 +{once['added_p99_ms']:.1f} ms"
        )
    return figures(raw)


# ---- over HTTP


def _over_http(config: Config, fresh: Callable[[], str], sizes: Sizes, seed: int) -> dict[str, float]:
    url = fresh()
    gc.collect()
    gc.freeze()  # the client's own pauses are not the gateway's
    store = open_store(url)
    names = _filled(store, sizes.answers)
    store.close()
    with _gateway(config, url, keeps=True) as durable, _gateway(config, url, keeps=False) as bare:
        most = asyncio.run(closed(durable, _thumbs(names), AT_ONCE, sizes.seconds))
        acks = asyncio.run(opened(durable, _thumbs(names), most.per_s / 2, sizes.seconds, seed))
        loads = [
            asyncio.run(opened(port, _chat, CHATS_PER_S, sizes.seconds, seed))
            for port in (bare, durable, durable, bare)  # a drift of the machine meets both alike
        ]
    for load in (most, acks, *loads):
        if load.failed:
            raise RuntimeError(f"{load.failed} of {len(load.took_ms)} requests were refused")
    without, with_ = _joined(loads[0], loads[3]), _joined(loads[1], loads[2])
    return {
        "saturated_per_s": most.per_s,
        "ack_p50_ms": acks.percentile_ms(0.5),
        "ack_p99_ms": acks.percentile_ms(0.99),
        "chat_mean_ms": with_.mean_ms,
        "added_mean_ms": with_.mean_ms - without.mean_ms,
        "added_p99_ms": with_.percentile_ms(0.99) - without.percentile_ms(0.99),
    }


def _joined(one: Loaded, other: Loaded) -> Loaded:
    return Loaded(one.seconds + other.seconds, one.took_ms + other.took_ms, one.failed + other.failed)


def _filled(store: Store, n: int) -> list[str]:
    answers = [answer for answer, _ in pairs_of(n, "http")]
    with store.write() as tx:
        completions.insert_all(tx, answers)
    return [answer.id for answer in answers]


def _thumbs(names: list[str]) -> Callable[[], Request]:
    count = itertools.count()

    def make() -> Request:
        i = next(count)
        body = {
            "completion_id": names[i % len(names)],
            "kind": "thumb",
            "value": i % 3 > 0,
            "user": f"u{i % len(names) % 997}",
        }
        return "/v1/feedback", body

    return make


def _chat() -> Request:
    return "/v1/chat/completions", {"messages": [{"role": "user", "content": ASKED}], "user": "ann", "temperature": 0.7}


@contextmanager
def _gateway(config: Config, url: str, keeps: bool) -> Iterator[int]:
    """Its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    http = {**config.http.model_dump(), "host": "127.0.0.1", "port": port}
    asked = {"config": {**config.model_dump(mode="json"), "store_url": url, "http": http}, "keeps": keeps}
    process = subprocess.Popen([sys.executable, "-m", "kto_ray.bench.inside.ingest"], stdin=subprocess.PIPE)
    try:
        assert process.stdin is not None
        process.stdin.write(json.dumps(asked).encode())  # not an argument: a URL may hold a password
        process.stdin.close()
        _wait(process, port)
        yield port
    finally:
        process.terminate()
        process.wait(60)


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    for _ in range(600):
        if process.poll() is not None:
            raise RuntimeError(f"the gateway ended with {process.returncode}")
        try:
            httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=5)
            return
        except httpx.TransportError:
            time.sleep(0.1)
    raise RuntimeError("the gateway did not start within a minute")
