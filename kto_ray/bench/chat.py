"""`kto-ray bench chat`: the whole service under 24 users, and who gets the processor.

There is no peer but the machine: what the model's worker does not get of the cores is what all around it costs, HTTP,
Ray, store and the users themselves, who are simulated on the same cores.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from rich.table import Table

from kto_ray.app import running
from kto_ray.config import Config
from kto_ray.people.crowd import Crowd
from kto_ray.people.tastes import TASTES, Habits
from kto_ray.people.turns import Sampling
from kto_ray.processor import here

WORKER = "VLLM::Worker"  # the process that runs the model, by the name that vLLM gives it
WARM_UP_S = 15.0
SHOWN = 8  # processes in the table
BAR = 0.85  # of the cores, for the worker


def bench_chat(config: Config, users: int, seconds: float, tell: Callable[[str], None]) -> dict[str, Any]:
    """Measure.

    Args:
        users: who chat and judge at once, as in the demo.
        seconds: of measurement, after a warm-up.
    """
    with tempfile.TemporaryDirectory() as home:
        fresh = config.model_copy(update={"home": home, "loop": config.loop.model_copy(update={"enabled": False})})
        with running(fresh, tell) as url:
            tell(f"{users} users chat for {seconds:.0f} s")
            figures = asyncio.run(_under_load(fresh, url, users, seconds))
    report = {
        "users": users,
        "seconds": seconds,
        "processor": here().name,
        "instructions": here().instructions,
        "dtype": config.model.dtype,
        **figures,
        "worker_share_bar": BAR,
        "worker_share_met": figures["worker_share_ratio"] >= BAR,
        "versions": {name: version(name) for name in ("ray", "torch")},
    }
    return report


async def _under_load(config: Config, url: str, users: int, seconds: float) -> dict[str, Any]:
    crowd = Crowd(url, config.model.served_name, TASTES["short"], 0, Sampling(), Habits())
    async with crowd:
        enough = asyncio.Event()
        traffic = asyncio.create_task(crowd.run("bench", users, 3, 10_000, enough))
        await asyncio.sleep(WARM_UP_S)
        before, turns, began = _cpu_seconds(), len(crowd.turns), time.monotonic()
        await asyncio.sleep(seconds)
        after, answered, took = _cpu_seconds(), len(crowd.turns) - turns, time.monotonic() - began
        enough.set()
        await traffic
    cores = len(os.sched_getaffinity(0))
    shares = Counter({name: (after[name] - before[name]) / took / cores for name in after})
    return {
        "answers_per_s": answered / took,
        "failed": len(crowd.tally.failures),
        "worker_share_ratio": shares[WORKER],
        "shares_ratio": dict(shares.most_common(SHOWN)),
    }


def _cpu_seconds() -> Counter[str]:
    """Processor seconds so far of this process and all that it started, by name."""
    found: Counter[str] = Counter()
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        try:
            times, name = process.cpu_times(), (process.cmdline() or [process.name()])[0]
        except psutil.NoSuchProcess:
            continue
        name = name.split(".")[0] if name.startswith("ray::") else Path(name).name.split()[0]
        found[name] += times.user + times.system
    return found


def table(report: dict[str, Any]) -> Table:
    title = f"{report['users']} users, {report['answers_per_s']:.1f} answers/s"
    shown = Table("process", "share of the cores", title=title)
    for name, share in report["shares_ratio"].items():
        shown.add_row(name, f"{share:.1%}")
    shown.add_row("", f"the worker's bar: {report['worker_share_bar']:.0%}")
    return shown
