"""Callers of a Service who ask all the time, and a ledger of how each answer went: who began it, who ended it, by which
version."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from kto_ray.records.completions import Completion
from kto_ray.store import completions
from tests.support.service import Service

PATIENCE = httpx.Timeout(300, connect=10)  # where every replica is dead, an answer waits until one is there again
WORDS = ("bread", "rain", "cats", "the moon", "tea", "maps", "bees", "snow", "trains", "soap", "gold", "music")


@dataclass
class Call:
    """One answer as its caller heard it; times by the monotonic clock. `fault`: what it lacked."""

    streamed: bool
    model: str
    began_at: float
    id: str = ""
    heard_at: float | None = None  # its first words
    ended_at: float = 0.0
    chunks: int = 0
    versions: set[str] = field(default_factory=set)
    finish: str | None = None
    fault: str | None = None

    def hear(self, told: dict[str, Any]) -> None:
        if "error" in told:
            self.fault = f"told in the stream: {told['error']}"
            return
        self.heard_at = self.heard_at or time.monotonic()
        self.chunks += 1
        self.versions.add(told["system_fingerprint"])
        for choice in told["choices"]:
            self.finish = choice.get("finish_reason") or self.finish

    def cut_by(self, moments: list[float]) -> bool:
        """Whether it had begun to speak when a replica was killed: what a client has heard nobody else can go on."""
        return self.streamed and any(
            self.heard_at is not None and self.heard_at < moment + 1 and moment < self.ended_at for moment in moments
        )


def call(run: Service, model: str, tokens: int, streamed: bool, **body: Any) -> Call:
    """Ask, and hear the answer to its end."""
    made = Call(streamed, model, time.monotonic())
    asked = {"model": model, "max_tokens": tokens, "min_tokens": tokens, "stream": streamed, **body}
    asked.setdefault("messages", [{"role": "user", "content": f"Tell me about {WORDS[int(time.time()) % 12]}."}])
    try:
        with httpx.stream("POST", f"{run.url}/v1/chat/completions", json=asked, timeout=PATIENCE) as answer:
            made.id = answer.headers.get("x-kto-completion-id", "")
            if answer.status_code != 200:
                made.fault = f"status {answer.status_code}: {answer.read().decode()[:300]}"
            elif streamed:
                _stream(made, answer.iter_lines())
            else:
                made.hear(json.loads(answer.read()))
    except httpx.HTTPError as error:
        made.fault = repr(error)
    made.ended_at = time.monotonic()
    if made.fault is None and (made.finish not in ("stop", "length") or len(made.versions) != 1):
        made.fault = f"it ended with {made.finish}, by {sorted(made.versions)}"
    return made


def _stream(made: Call, lines: Iterator[str]) -> None:
    last = ""
    for line in lines:
        if line.startswith("data: "):
            last = line.removeprefix("data: ")
            if last != "[DONE]":
                made.hear(json.loads(last))
    if made.fault is None and last != "[DONE]":
        made.fault = f"truncated after {made.chunks} chunks: {last[:100]}"


class Callers:
    """Each lane asks for one answer after the other until it is told to stop; then it hears its last one to its end."""

    def __init__(self, run: Service, lanes: int) -> None:
        self.run, self.calls = run, list[Call]()
        self.kills = list[float]()  # moments
        self._done, self._lock = threading.Event(), threading.Lock()
        self._threads = [threading.Thread(target=self._ask_on, args=(lane,), daemon=True) for lane in range(lanes)]

    def killed(self) -> None:
        """A replica is killed about now."""
        self.kills.append(time.monotonic())

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def enough(self) -> bool | None:
        """Some streams and a whole answer, or None."""
        streams = sum(one.streamed for one in self.calls)
        return True if 5 < streams < len(self.calls) else None

    @property
    def faults(self) -> list[Call]:
        """Those that failed, or were cut by nothing that explains it."""
        return [one for one in self.calls if one.fault is not None and not one.cut_by(self.kills)]

    def answered_by(self, since: float) -> set[str]:
        """Which versions answered, of `policy`, what was asked since a moment."""
        with self._lock:
            late = [one for one in self.calls if one.model == "policy" and one.began_at > since]
        return set[str]().union(*(one.versions for one in late))

    def _ask_on(self, lane: int) -> None:
        number = 0
        while not self._done.is_set():
            number += 1
            model = ("policy", "policy", "policy@champion")[number % 3]
            user = {"user": f"u{lane}-{number}"} if number % 2 else {}
            made = call(self.run, model, (8, 24, 60)[(lane + number) % 3], (lane + number) % 4 != 0, **user)
            with self._lock:
                self.calls.append(made)
            self._done.wait(0.1)


@contextmanager
def callers(run: Service, lanes: int = 4) -> Iterator[Callers]:
    """They have heard all their answers when this ends; each is whole, by one version, and in the store as it was."""
    asking = Callers(run, lanes)
    asking.start()
    try:
        yield asking
        run.wait("enough of them", asking.enough)  # on a slow machine, too
    finally:
        asking.stop()
    streams = sum(one.streamed for one in asking.calls)
    cut = sum(one.fault is not None for one in asking.calls) - len(asking.faults)
    print(f"{streams} streams, {len(asking.calls) - streams} whole answers, {cut} cut by {len(asking.kills)} kills")
    assert asking.faults == []
    for one in asking.calls:
        stored = run.wait(f"the row of {one.id}", lambda one=one: row(run, one.id), 60)  # type: ignore[misc]
        assert stored.status == ("failed" if one.fault else "complete"), (one, stored.status)
        assert one.versions <= {stored.adapter}, (one, stored.adapter)


def row(run: Service, completion: str) -> Completion | None:
    with run.store.read() as tx:
        return completions.get(tx, completion)
