"""Users of a cluster's Service, who ask again and again, and a ledger of how their answers ended."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

PROBE_S = 5.0  # as the manifests have it, with two failures in a row before a pod gets no more
PATIENCE = httpx.Timeout(60, connect=10)


class Endpoints:
    """The addresses that new requests go to, as a Service finds them: by each proxy's own word."""

    def __init__(self, nodes: dict[str, str]) -> None:
        """
        Args:
            nodes: the addresses of the pods that serve, by their names.
        """
        self._nodes = dict(nodes)
        self._failed = dict.fromkeys(nodes, 2)
        self._closed = threading.Event()
        self._probe()
        self._thread = threading.Thread(target=self._probe_on, daemon=True)
        self._thread.start()

    def any(self) -> str:
        """The base URL of one that takes requests.

        Raises:
            LookupError: there is none.
        """
        ready = [ip for name, ip in self._nodes.items() if self._failed[name] < 2]
        if not ready:
            raise LookupError("no pod takes requests")
        return f"http://{random.choice(ready)}:8000"

    def leave(self, name: str) -> None:
        """Of a pod that is to end: at once, before it hears of it."""
        self._nodes = {other: ip for other, ip in self._nodes.items() if other != name}

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _probe_on(self) -> None:
        while not self._closed.wait(PROBE_S):
            self._probe()

    def _probe(self) -> None:
        for name, ip in self._nodes.items():
            try:
                well = httpx.get(f"http://{ip}:8000/-/healthz", timeout=5).status_code == 200
            except httpx.TransportError:
                well = False
            self._failed[name] = 0 if well else self._failed[name] + 1


@dataclass
class Ledger:
    streams: int = 0
    wholes: int = 0
    longest_s: float = 0.0
    waited_s: float = 0.0  # the longest that anybody waited for an answer to begin
    broken: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def words(self) -> str:
        figures = f"{self.streams} streams of up to {self.longest_s:.0f} s, {self.wholes} whole answers"
        return f"{figures}, begun within {self.waited_s:.1f} s, {len(self.broken)} broken"

    def begun(self, waited_s: float) -> None:
        with self._lock:
            self.waited_s = max(self.waited_s, waited_s)

    def add(self, streamed: bool, seconds: float, fault: str | None) -> None:
        with self._lock:
            self.streams += streamed
            self.wholes += not streamed
            self.longest_s = max(self.longest_s, seconds)
            if fault is not None:
                self.broken.append(f"{time.strftime('%H:%M:%S')} after {seconds:.1f} s: {fault}")


class Users:
    """Each lane asks for answers of its lengths, one after the other, until it is told to stop; then it hears its last
    one to its end."""

    def __init__(self, endpoints: Endpoints, key: str, lanes: tuple[tuple[float, ...], ...]) -> None:
        self.ledger = Ledger()
        self._endpoints, self._key = endpoints, key
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._ask_on, args=lane, daemon=True) for lane in enumerate(lanes)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ask no more."""
        self._done.set()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _ask_on(self, lane: int, lengths: tuple[float, ...]) -> None:
        number = 0
        while not self._done.is_set():
            seconds = lengths[number % len(lengths)]
            number += 1
            streamed = seconds > 0 or number % 2 == 0
            began = time.monotonic()
            fault = self._ask(f"lane {lane}, question {number}: speak for {seconds:g} s", f"u{lane}", streamed)
            self.ledger.add(streamed, time.monotonic() - began, fault)
            self._done.wait(0.3)

    def _ask(self, question: str, user: str, streamed: bool) -> str | None:
        """What went wrong, if anything did."""
        messages = [{"role": "user", "content": question}]
        body = {"messages": messages, "user": user, "stream": streamed, "max_tokens": 256}
        try:
            url = f"{self._endpoints.any()}/v1/chat/completions"
            headers = {"Authorization": f"Bearer {self._key}"}
            asked = time.monotonic()
            with httpx.stream("POST", url, json=body, headers=headers, timeout=PATIENCE) as answer:
                self.ledger.begun(time.monotonic() - asked)
                if answer.status_code != 200:
                    return f"{url}: {answer.status_code} {answer.read().decode()[:300]}"
                return _end_of(answer.iter_lines()) if streamed else _fault_of(json.loads(answer.read()))
        except (httpx.HTTPError, LookupError) as error:
            return f"{question!r}: {error!r}"


def _end_of(lines: Iterator[str]) -> str | None:
    """What a stream lacks: it is to end in "stop" and [DONE]."""
    finish, last = None, ""
    for line in lines:
        if not line.startswith("data: "):
            continue
        last = line.removeprefix("data: ")
        told = {} if last == "[DONE]" else json.loads(last)
        if "error" in told:
            return last[:300]
        for choice in told.get("choices", ()):
            finish = choice.get("finish_reason") or finish
    return None if (finish, last) == ("stop", "[DONE]") else f"it ended with {finish} and {last[:100]!r}"


def _fault_of(answer: dict[str, Any]) -> str | None:
    finish = answer["choices"][0]["finish_reason"]
    return None if finish == "stop" else f"it ended with {finish}"


@contextmanager
def users(endpoints: Endpoints, key: str, lanes: tuple[tuple[float, ...], ...]) -> Iterator[Users]:
    """They have heard all their answers when this ends."""
    asking = Users(endpoints, key, lanes)
    try:
        yield asking
    finally:
        asking.stop()
        asking.join()
        print(asking.ledger.words)
