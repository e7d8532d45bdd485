"""HTTP load on loopback, by a client that costs little: kept connections, as many at once as a load needs."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable, Mapping
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
        return percentile(self.took_ms, share)


def percentile(values: tuple[float, ...] | list[float], share: float) -> float:
    """One of the values, never between two."""
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


async def closed(port: int, make: Callable[[], Request], at_once: int, seconds: float) -> Loaded:
    """As much as there is an answer to: each of `at_once` clients asks again once it is answered."""
    post = _Post(make)
    took_s = await keep_asking(port, post, at_once, seconds)
    return Loaded(took_s, tuple(post.took_ms), post.failed)


async def opened(port: int, make: Callable[[], Request], per_s: float, seconds: float, seed: int) -> Loaded:
    """Requests that come when they come (Poisson), however long the others take."""
    post = _Post(make)
    took_s = await come(port, post, per_s, seconds, seed)
    return Loaded(took_s, tuple(post.took_ms), post.failed)


class _Post:
    """Requests whose answers tell their length; what came of them."""

    def __init__(self, make: Callable[[], Request]) -> None:
        self._make = make
        self.took_ms: list[float] = []
        self.failed = 0

    async def __call__(self, line: Line, due: float) -> None:
        self.failed += not 200 <= await line.post(*self._make()) < 300
        self.took_ms.append((time.perf_counter() - due) * 1000)


# ---- when it is asked, whatever is asked. `ask` is given a connection and when it was due, by time.perf_counter().

Ask = Callable[["Line", float], Awaitable[None]]


async def keep_asking(port: int, ask: Ask, at_once: int, seconds: float) -> float:
    """A closed loop; the seconds that it took until the last answer ended."""
    began = time.perf_counter()

    async def client() -> None:
        line = await Line.open(port)
        while (asked := time.perf_counter()) - began < seconds:
            if line.broken:
                line = await Line.open(port)
            await ask(line, asked)
        line.close()

    await asyncio.gather(*(client() for _ in range(at_once)))
    return time.perf_counter() - began


async def come(port: int, ask: Ask, per_s: float, seconds: float, seed: int) -> float:
    """An open loop; the seconds that it took until the last answer ended."""
    arrivals, at = [], 0.0
    chance = random.Random(seed)
    while (at := at + chance.expovariate(per_s)) < seconds:
        arrivals.append(at)
    lines: list[Line] = []
    began = time.perf_counter()

    async def one(due: float) -> None:
        line = lines.pop() if lines else await Line.open(port)
        await ask(line, began + due)
        if not line.broken:
            lines.append(line)

    async with asyncio.TaskGroup() as tasks:
        for due in arrivals:
            await asyncio.sleep(max(0.0, due - (time.perf_counter() - began)))
            tasks.create_task(one(due))
    for line in lines:
        line.close()
    return time.perf_counter() - began


class Line:
    """A kept connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.broken = False

    @classmethod
    async def open(cls, port: int) -> Line:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def post(self, path: str, body: Mapping[str, Any]) -> int:
        """The status of an answer that tells its length."""
        status, headers = await self._asked(path, body, None)
        await self._reader.readexactly(int(headers["content-length"]))
        return status

    async def stream(
        self, path: str, body: Mapping[str, Any], key: str | None
    ) -> tuple[int, list[tuple[float, bytes]], bool]:
        """The status, the pieces of the answer, each with when it came, and whether they came to their end."""
        pieces: list[tuple[float, bytes]] = []
        status = 0
        try:
            status, headers = await self._asked(path, body, key)
            if "content-length" in headers:
                data = await self._reader.readexactly(int(headers["content-length"]))
                return status, [(time.perf_counter(), data)], True
            while size := int(await self._reader.readuntil(b"\r\n"), 16):  # RFC 9112, section 7.1
                pieces.append((time.perf_counter(), (await self._reader.readexactly(size + 2))[:-2]))
            await self._reader.readuntil(b"\r\n")
        except (OSError, asyncio.IncompleteReadError):  # the server let go
            self.broken = True
            self.close()
            return status, pieces, False
        return status, pieces, True

    async def _asked(self, path: str, body: Mapping[str, Any], key: str | None) -> tuple[int, dict[str, str]]:
        """Send a request and read the head of its answer: status and headers."""
        data = json.dumps(body).encode()
        head = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json"]
        head += [f"Content-Length: {len(data)}", *([f"Authorization: Bearer {key}"] if key else [])]
        self._writer.write("\r\n".join([*head, "", ""]).encode() + data)
        first, *rest = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in rest if line)
        return int(first.split()[1]), headers

    def close(self) -> None:
        self._writer.close()
