"""HTTP load on loopback, by a client that costs little: kept connections, as many at once as a load needs."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Request = tuple[str, Mapping[str, Any]]  # the path of a POST and its body


@dataclass(frozen=True, slots=True)
class Loaded:
    """What came of a load. Times are from when a request was due, whether or not a connection was free then."""

    seconds: float
    took_ms: tuple[float, ...]
    failed: int  # not 2xx

    @property
    def per_s(self) -> float:
        return len(self.took_ms) / self.seconds

    @property
    def mean_ms(self) -> float:
        return sum(self.took_ms) / len(self.took_ms)

    def percentile_ms(self, share: float) -> float:
        return sorted(self.took_ms)[min(int(share * len(self.took_ms)), len(self.took_ms) - 1)]


async def closed(port: int, make: Callable[[], Request], at_once: int, seconds: float) -> Loaded:
    """As much as there is an answer to: each of `at_once` clients asks again once it is answered."""
    took: list[float] = []
    failed = [0]
    began = time.perf_counter()

    async def client() -> None:
        line = await _Line.open(port)
        while (asked := time.perf_counter()) - began < seconds:
            failed[0] += not 200 <= await line.post(*make()) < 300
            took.append((time.perf_counter() - asked) * 1000)
        line.close()

    await asyncio.gather(*(client() for _ in range(at_once)))
    return Loaded(time.perf_counter() - began, tuple(took), failed[0])


async def opened(port: int, make: Callable[[], Request], per_s: float, seconds: float, seed: int) -> Loaded:
    """Requests that come when they come (Poisson), however long the others take."""
    arrivals, at = [], 0.0
    chance = random.Random(seed)
    while (at := at + chance.expovariate(per_s)) < seconds:
        arrivals.append(at)
    lines: list[_Line] = []
    took: list[float] = []
    failed = [0]
    began = time.perf_counter()

    async def one(due: float) -> None:
        line = lines.pop() if lines else await _Line.open(port)
        failed[0] += not 200 <= await line.post(*make()) < 300
        took.append((time.perf_counter() - began - due) * 1000)
        lines.append(line)

    async with asyncio.TaskGroup() as tasks:
        for due in arrivals:
            await asyncio.sleep(max(0.0, due - (time.perf_counter() - began)))
            tasks.create_task(one(due))
    for line in lines:
        line.close()
    return Loaded(time.perf_counter() - began, tuple(took), failed[0])


class _Line:
    """A kept connection; it reads answers that tell their length, as all but streams do."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, port: int) -> _Line:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def post(self, path: str, body: Mapping[str, Any]) -> int:
        """The status."""
        data = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
        )
        self._writer.write(f"{head}\r\n\r\n".encode() + data)
        answer = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(answer.partition("content-length: ")[2].partition("\r\n")[0])
        await self._reader.readexactly(length)
        return int(answer.split()[1])

    def close(self) -> None:
        self._writer.close()
