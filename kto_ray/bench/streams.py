"""Streamed answers under load, asked for by a process of its own, as their clients got them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kto_ray.bench.load import percentile
from kto_ray.bench.own_process import ask

PATH = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked, the bodies in turn, and how often: by `at_once` clients who ask again once they are answered, or,
    where that is None, `per_s` times a second, whenever it comes (Poisson)."""

    port: int
    bodies: Sequence[Mapping[str, Any]]
    seconds: float
    at_once: int | None = None
    per_s: float = 0.0
    seed: int = 0
    key: str | None = None  # an API key


@dataclass(frozen=True, slots=True)
class Stream:
    """One answer. Times are in milliseconds, from when it was due. `gaps_ms` are between one piece of text and the
    next, as many tokens as the engine tells at once. A failure is told by a status that is not 200, or an `error`."""

    body: int  # which
    status: int
    id: str
    version: str  # that answered, as the server says
    text: str
    tokens: int
    finish: str | None
    ended: bool  # as a stream ends, by [DONE] and the end of the response
    error: str | None
    first_ms: float | None
    gaps_ms: tuple[float, ...]

    @property
    def failed(self) -> bool:
        return self.status != 200 or self.error is not None

    @property
    def cut(self) -> bool:
        """It began, and has no end that an answer has."""
        return not self.failed and not (self.ended and self.finish in ("stop", "length"))


@dataclass(frozen=True, slots=True)
class Streamed:
    """What came of a load; `seconds` are until the last answer ended."""

    seconds: float
    streams: tuple[Stream, ...]

    @property
    def tokens_per_s(self) -> float:
        return sum(stream.tokens for stream in self.streams) / self.seconds

    @property
    def per_s(self) -> float:
        return len(self.streams) / self.seconds

    def first_ms(self, share: float) -> float:
        """A percentile of the time to the first token."""
        return percentile([stream.first_ms for stream in self.streams if stream.first_ms is not None], share)

    def gap_ms(self, share: float) -> float:
        """A percentile of the time from one piece of text to the next."""
        return percentile([gap for stream in self.streams for gap in stream.gaps_ms], share)

    def refuse_failures(self) -> Streamed:
        """Raises:
        RuntimeError: an answer failed or was cut off; figures of the others would mean nothing.
        """
        bad = [stream for stream in self.streams if stream.failed or stream.cut]
        if bad or not self.streams:
            first = f"; the first: {bad[0].status}, {bad[0].error}, ended by {bad[0].finish}" if bad else ""
            raise RuntimeError(f"{len(bad)} of {len(self.streams)} answers failed or were cut off{first}")
        return self


def streamed(load: Load, what: str) -> Streamed:
    """Raises:
    RuntimeError: the load itself failed, and not what it asked for; `what` names it.
    """
    found = ask("kto_ray.bench.inside.streams", asdict(load), {}, what)
    streams = (Stream(**{**one, "gaps_ms": tuple(one["gaps_ms"])}) for one in found["streams"])
    return Streamed(found["seconds"], tuple(streams))


def read(body: int, due: float, status: int, pieces: Sequence[tuple[float, bytes]], whole: bool) -> Stream:
    """A stream from its pieces, each with when it came.

    Args:
        due: by the same clock.
        whole: the response came to its end.
    """
    text, version, name, finish, error = "", "", "", None, None
    tokens, done, told = 0, False, []
    for at, event in _events(pieces) if status == 200 else ():
        if event == b"[DONE]":
            done = True
            continue
        chunk = json.loads(event)
        if "error" in chunk:
            error = str(chunk["error"].get("message"))
            continue
        name, version = chunk.get("id") or name, chunk.get("system_fingerprint") or version
        tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
        for choice in chunk["choices"]:
            finish = choice.get("finish_reason") or finish
            if said := choice["delta"].get("content"):
                text += said
                told.append((at - due) * 1000)
    if status != 200:
        error = b"".join(data for _, data in pieces).decode(errors="replace")[:400]
    gaps = tuple(after - before for before, after in itertools.pairwise(told))
    first = told[0] if told else None
    return Stream(body, status, name, version, text, tokens, finish, done and whole, error, first, gaps)


def _events(pieces: Sequence[tuple[float, bytes]]) -> list[tuple[float, bytes]]:
    """The data of each event, with when its last byte came."""
    events, rest = [], b""
    for at, data in pieces:
        *found, rest = (rest + data).split(b"\n\n")
        events += [(at, event.removeprefix(b"data:").strip()) for event in found]
    return events
