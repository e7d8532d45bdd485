"""A load of streamed answers, the inside of its process. What came is read once the load is over."""

from __future__ import annotations

import asyncio
import gc
import itertools
from dataclasses import asdict
from typing import Any

from kto_ray.bench.load import Line, come, keep_asking
from kto_ray.bench.own_process import answer
from kto_ray.bench.streams import PATH, Load, read


async def run(load: Load) -> dict[str, Any]:
    turns = itertools.count()
    came: list[tuple[int, float, int, list[tuple[float, bytes]], bool]] = []

    async def ask(line: Line, due: float) -> None:
        body = next(turns) % len(load.bodies)
        came.append((body, due, *await line.stream(PATH, load.bodies[body], load.key)))

    if load.at_once is not None:
        seconds = await keep_asking(load.port, ask, load.at_once, load.seconds)
    else:
        seconds = await come(load.port, ask, load.per_s, load.seconds, load.seed)
    return {"seconds": seconds, "streams": [asdict(read(*one)) for one in came]}


if __name__ == "__main__":
    gc.disable()  # the client's own pauses are not the server's
    answer(lambda asked: asyncio.run(run(Load(**asked))))
