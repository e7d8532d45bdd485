"""`kto-ray bench live`: what users' first tokens wait for while the gate asks its guard prompts.

The peer is the same service without the gate, in the same run: a window in which the gate asks all its prompts of both
sides, as the loop does and with its priority, then one as long without, with the same users, who come when they come
(Poisson) and stream. The base model stands for candidate and champion. What the gate computes afterwards, on a machine
that trains, is not part of it.
"""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import httpx
import numpy as np
from ray.serve.handle import DeploymentHandle
from rich.table import Table

from kto_ray.app import running
from kto_ray.config import Config
from kto_ray.evaluate.ask import guard_answers
from kto_ray.people.offline import questions
from kto_ray.people.tastes import TASTES
from kto_ray.processor import here

WARM_UP_S = 15.0
TIMEOUT_S = 180.0
MAX_TOKENS = 48
BAR = 1.1  # p99 of the time to the first token beside the gate, over that without
SHARES = (0.5, 0.9, 0.99)


@dataclass(frozen=True, slots=True)
class Window:
    """What users saw. Times are from when a request was due, whether or not a connection was free then."""

    seconds: float
    first_ms: tuple[float, ...]  # to the first word
    failed: int


def bench_live(config: Config, per_s: float, repeats: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Measure.

    Args:
        config: gate.guard_prompts and gate.guard_at_once are what is measured.
        per_s: requests of users.
        repeats: of both windows; a p99 needs some hundreds of requests.
    """
    from ray import serve

    windows: list[tuple[Window, Window]] = []
    with tempfile.TemporaryDirectory() as home:
        fresh = config.model_copy(update={"home": home, "loop": config.loop.model_copy(update={"enabled": False})})
        with running(fresh, tell) as url:
            policy = serve.get_deployment_handle("Policy", app_name="kto-ray")
            asyncio.run(users(url, per_s, 0, lasting(WARM_UP_S)))
            for number in range(1, repeats + 1):
                beside = asyncio.run(_beside_the_gate(fresh, policy, url, per_s, number))
                alone = asyncio.run(users(url, per_s, number, lasting(beside.seconds)))
                windows.append((beside, alone))
                tell(f"{number}/{repeats}: the gate asked for {beside.seconds:.0f} s")
    versions = {name: version(name) for name in ("ray", "torch")}
    machine = {"processor": here().name, "instructions": here().instructions, "dtype": config.model.dtype}
    asked = {"per_s": per_s, "repeats": repeats, **config.gate.model_dump(include={"guard_prompts", "guard_at_once"})}
    return {**asked, **machine, **compared(windows), "versions": versions}


def compared(windows: list[tuple[Window, Window]]) -> dict[str, Any]:
    """The figures of all windows together, beside the gate and alone."""
    found: dict[str, Any] = {"window_s": [beside.seconds for beside, _ in windows]}
    for name, side in (("beside", 0), ("alone", 1)):
        first_ms = [ms for pair in windows for ms in pair[side].first_ms]
        found[f"{name}_requests"] = len(first_ms)
        found[f"{name}_failed"] = sum(pair[side].failed for pair in windows)
        found |= {f"{name}_p{share * 100:.0f}_ms": float(np.quantile(first_ms, share)) for share in SHARES}
        found[f"{name}_p99_ms_by_window"] = [float(np.quantile(pair[side].first_ms, 0.99)) for pair in windows]
    ratio = found["beside_p99_ms"] / found["alone_p99_ms"]
    return {**found, "p99_ratio": ratio, "p99_ratio_bar": BAR, "p99_ratio_met": ratio <= BAR}


async def _beside_the_gate(config: Config, policy: DeploymentHandle, url: str, per_s: float, seed: int) -> Window:
    """As long as the gate asks."""
    names = (config.base_name, None)
    asking = asyncio.create_task(asyncio.to_thread(guard_answers, config, policy, names))
    seen = await users(url, per_s, seed, lambda: not asking.done())
    await asking
    return seen


async def users(url: str, per_s: float, seed: int, goes_on: Callable[[], bool]) -> Window:
    """Requests while it goes on, decided by the seed; they are waited for to their ends."""
    chance, began, due = random.Random(seed), time.perf_counter(), 0.0
    asked = [question.prompt for question in questions(TASTES["short"], 200, f"live/{seed}")]
    first_ms: list[float] = []
    failed = [0]

    async def one(http: httpx.AsyncClient, at: float, prompt: str) -> None:
        try:
            first_s = await _first_word(http, prompt)
        except httpx.HTTPError:
            first_s = None
        if first_s is None:
            failed[0] += 1
        else:
            first_ms.append((first_s - began - at) * 1000)

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    async with (
        httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, limits=limits) as http,
        asyncio.TaskGroup() as tasks,
    ):
        while goes_on():
            due += chance.expovariate(per_s)
            await asyncio.sleep(max(0.0, due - (time.perf_counter() - began)))
            tasks.create_task(one(http, due, chance.choice(asked)))
        seconds = time.perf_counter() - began
    return Window(seconds, tuple(first_ms), failed[0])


def lasting(seconds: float) -> Callable[[], bool]:
    end = time.perf_counter() + seconds
    return lambda: time.perf_counter() < end


async def _first_word(http: httpx.AsyncClient, prompt: str) -> float | None:
    """When it came; None where the answer did not come whole."""
    body = {"messages": [{"role": "user", "content": prompt}], "stream": True, "max_tokens": MAX_TOKENS}
    first, event = None, ""
    async with http.stream("POST", "/v1/chat/completions", json=body) as got:
        async for line in got.aiter_lines():
            event = line.removeprefix("data: ") or event
            if first is None and event.startswith("{") and _says(json.loads(event)):
                first = time.perf_counter()
    return first if event == "[DONE]" else None


def _says(chunk: dict[str, Any]) -> bool:
    return any(choice["delta"].get("content") for choice in chunk.get("choices", ()))


def table(report: dict[str, Any]) -> Table:
    title = f"{report['per_s']:g} requests/s, {report['guard_at_once']} guard prompts at once"
    shown = Table("time to the first token", "beside the gate", "without", title=title)
    for share in SHARES:
        name = f"p{share * 100:.0f}_ms"
        shown.add_row(name.removesuffix("_ms"), *(f"{report[f'{side}_{name}']:.0f} ms" for side in ("beside", "alone")))
    shown.add_row("requests", *(f"{report[f'{side}_requests']}" for side in ("beside", "alone")))
    verdict = "met" if report["p99_ratio_met"] else "missed"
    shown.add_row("p99, beside over without", f"{report['p99_ratio']:.2f}", f"at most {BAR:g}: {verdict}")
    return shown
