"""A service that is used for long, by clients who leave, stall, give up and behave, while champions change: nothing of
it grows, nothing of what they left stays, and its end cuts no stream. `make soak` alone runs this."""

from __future__ import annotations

import os
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import combinations
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from kto_ray.records.adapters import CHALLENGER, CHAMPION, PREVIOUS
from kto_ray.store import adapters, completions
from tests.support.callers import Call, call, row
from tests.support.steered import Steered, steered
from tests.support.swaps import swap

MINUTES = float(os.environ.get("SOAK_MINUTES", "0"))

pytestmark = [
    pytest.mark.fault,
    pytest.mark.skipif(MINUTES <= 0, reason="half an hour; make soak"),
    pytest.mark.timeout(60 * MINUTES + 1200),
]

SEATS = 8  # of the engine: what stayed in one would soon be missed
CHATS = 24  # at once, in the gateway; likewise
SETTINGS = (
    f"serve.max_num_seqs={SEATS}",
    f"limits.chats_in_all={CHATS}",
    "limits.chats_per_minute_of_user=10000",
    "serve.kv_cache_gb=1",
    "model.max_model_len=1024",
    "loop.enabled=false",
)
PARTS = {
    "gateway": "ServeReplica:kto-ray:Gateway",
    "policy": "ServeReplica:kto-ray:Policy",
    "engine": "VLLM::EngineCore",
    "worker": "VLLM::Worker",
    "controller": "ServeReplica:kto-ray:Controller",
}
SAMPLE_S, SWAP_S = 5.0, 45.0
# Of batches of every size: vLLM's layers, and ours, keep what they made for the last 32 sizes each, some 15 MiB a size
WARM_S, WARM_ASKED = 180.0, 1500  # however slow the machine is
SHARE_AN_HOUR, SLACK = 0.01, 4 * 2**20  # that a process may grow, of itself, and what a page cache or a heap may do


class Crowd:
    """A thread each, who do the same again and again, and what came of it."""

    def __init__(self, run: Steered) -> None:
        self.run, self.lock, self.done = run, threading.Lock(), threading.Event()
        self.whole, self.left, self.wrong = list[Call](), list[str](), list[str]()
        self.gave_up = 0
        does = (self._behave, self._behave, self._pinned, self._leave, self._leave, self._stall, self._give_up)
        self.threads = [threading.Thread(target=self._on, args=(act,)) for act in does]

    def _on(self, act: Callable[[int], None]) -> None:
        number = 0
        while not self.done.is_set():
            number += 1
            act(number)

    def _keep(self, made: Call) -> None:
        with self.lock:
            self.whole.append(made)
            self.wrong += [f"{made.model}: {made.fault}"] if made.fault else []

    def _behave(self, number: int) -> None:
        self._keep(call(self.run, "policy", (12, 40)[number % 2], number % 3 != 0, user=f"user-{number}"))

    def _pinned(self, number: int) -> None:
        self._keep(call(self.run, ("policy@base", "policy@champion")[number % 2], 16, True))

    def _leave(self, number: int) -> None:
        """In the middle of a stream."""
        with self._stream(200) as answer:
            lines = (line for line in answer.iter_lines() if line.startswith("data: "))
            for _ in range(1 + number % 4):
                next(lines)
        with self.lock:
            self.left.append(answer.headers["x-kto-completion-id"])

    def _stall(self, number: int) -> None:
        """Reads a line a second, and to the end."""
        with self._stream(40) as answer:
            last = ""
            for line in answer.iter_lines():
                last = line or last
                self.done.wait(0.5)
        if last != "data: [DONE]":
            with self.lock:
                self.wrong.append(f"a slow reader got {last[:200]}")

    def _give_up(self, number: int) -> None:
        """Before a whole answer came."""
        body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 300, "min_tokens": 300, "user": "hasty"}
        with suppress(httpx.ReadTimeout):
            httpx.post(f"{self.run.url}/v1/chat/completions", json=body, timeout=httpx.Timeout(10, read=1))
            self.wrong.append("300 tokens within a second")
        with self.lock:
            self.gave_up += 1

    def _stream(self, tokens: int) -> Any:
        hi = [{"role": "user", "content": "Hi"}]
        body = {"messages": hi, "stream": True, "max_tokens": tokens, "min_tokens": tokens, "user": "slow"}
        return httpx.stream("POST", f"{self.run.url}/v1/chat/completions", json=body, timeout=120)


class Memory:
    """What each part of the service holds, every few seconds: (seconds, bytes). What is read from files is not of it:
    the kernel takes that back, and brings it in again, as it likes."""

    def __init__(self, run: Steered) -> None:
        self.seen: dict[str, list[tuple[float, int]]] = {part: [] for part in PARTS}
        self._parts = {part: _only(run.processes(title)) for part, title in PARTS.items()}
        self._began = time.monotonic()

    def look(self) -> None:
        for part, process in self._parts.items():
            self.seen[part].append((time.monotonic() - self._began, _held(process)))

    def growth(self, part: str) -> tuple[float, float]:
        """In the second half: bytes by its trend (Theil-Sen: no single step tilts it), and how many may be."""
        seen = self.seen[part][len(self.seen[part]) // 2 :]
        thinned = seen[:: max(1, len(seen) // 120)]
        slope = statistics.median((b - a) / (t - s) for (s, a), (t, b) in combinations(thinned, 2))
        seconds = seen[-1][0] - seen[0][0]
        return slope * seconds, max(SLACK, SHARE_AN_HOUR * seconds / 3600 * seen[0][1])


def _held(process: psutil.Process) -> int:
    lines = (line.split() for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
    return sum(1024 * int(line[1]) for line in lines if line[0] in ("RssAnon:", "RssShmem:", "VmSwap:"))


def _only(found: list[psutil.Process]) -> psutil.Process:
    [process] = found
    return process


@pytest.fixture
def run(tmp_path_factory: pytest.TempPathFactory, free_port: Any) -> Iterator[Steered]:
    with steered(tmp_path_factory.mktemp("soak"), free_port(), *SETTINGS) as started:
        yield started


def test_nothing_grows_and_nothing_is_left(run: Steered) -> None:
    swap(run)
    warm_up(run)
    crowd, memory = Crowd(run), Memory(run)
    for thread in crowd.threads:
        thread.start()
    swaps, until, next_swap = 0, time.monotonic() + 60 * MINUTES, time.monotonic() + SWAP_S
    try:
        while time.monotonic() < until and not crowd.wrong:
            memory.look()
            if time.monotonic() > next_swap:
                swap(run)
                swaps, next_swap = swaps + 1, time.monotonic() + SWAP_S
            time.sleep(SAMPLE_S)
    finally:
        crowd.done.set()
        for thread in crowd.threads:
            thread.join()
    print(f"{len(crowd.whole)} whole, {len(crowd.left)} left, {crowd.gave_up} given up, {swaps} swaps")
    assert crowd.wrong == []
    grown = {part: memory.growth(part) for part in PARTS}
    for part, (bytes_, bound) in grown.items():
        first, last = memory.seen[part][0][1] / 2**20, memory.seen[part][-1][1] / 2**20
        print(f"{part}: {first:.0f} to {last:.0f} MiB, {bytes_ / 2**20:+.1f} in the second half of {bound / 2**20:.1f}")
        print("  each minute:", *(f"{held / 2**20:.0f}" for _, held in memory.seen[part][:: round(60 / SAMPLE_S)]))
    assert all(bytes_ <= bound for bytes_, bound in grown.values()), grown
    nothing_is_left(run, crowd)
    its_end_cuts_no_stream(run)


def warm_up(run: Steered) -> None:
    until, each = time.monotonic() + min(WARM_S, 15 * MINUTES), WARM_ASKED // SEATS

    def ask(seat: int) -> None:
        chance, asked_for = random.Random(seat), 0
        while time.monotonic() < until or asked_for < each:
            asked_for += 1
            words = " ".join(chance.choices(("why", "is", "the", "sky", "blue"), k=chance.randint(1, 60)))
            model = chance.choice(("policy", "policy@champion", "policy@base"))
            asked = {"model": model, "messages": [{"role": "user", "content": words}], "user": f"warm-{seat}"}
            body = {**asked, "max_tokens": chance.randint(1, 4)}
            httpx.post(f"{run.url}/v1/chat/completions", json=body, timeout=120).raise_for_status()

    with ThreadPoolExecutor(SEATS) as pool:
        list(pool.map(ask, range(SEATS)))


def nothing_is_left(run: Steered, crowd: Crowd) -> None:
    """In the engine, in its slots, or out of the store."""
    worker = _only(run.processes(PARTS["worker"]))  # where the model runs
    run.wait("an engine that rests", lambda: True if _spent(worker, 3.0) < 0.3 else None, 60)
    with ThreadPoolExecutor(SEATS) as pool:
        began = time.monotonic()
        together = list(pool.map(lambda _: call(run, "policy", 60, True), range(SEATS)))
    assert [one.fault for one in together] == [None] * SEATS
    spoke = [(one.heard_at or began) for one in together]
    assert max(spoke) < min(one.ended_at for one in together), "all seats are free"

    def rest() -> bool | None:
        with run.store.read() as tx:
            now = adapters.aliases(tx, run.config.base_name)
        wanted = {now.get(alias) for alias in (CHAMPION, CHALLENGER, PREVIOUS)} - {None, run.config.base_name}
        return True if [set(one["held"]) for one in run.live] == [wanted] else None

    run.wait("slots of what is wanted alone", rest, 60)
    for one in crowd.whole:
        stored = row(run, one.id)
        assert stored is not None and stored.status == "complete" and one.versions == {stored.adapter}, one
    for name in crowd.left:
        stored = run.wait("the row of who left", lambda name=name: row(run, name), 30)  # type: ignore[misc]
        assert stored.status == "aborted", stored
    with run.store.read() as tx:
        hasty = completions.of_user(tx, "hasty")
    assert [one.status for one in hasty] == ["aborted"] * crowd.gave_up
    assert run.get("/readyz")["spooled"] == 0


def _spent(process: psutil.Process, seconds: float) -> float:
    """CPU seconds within so many."""
    before = process.cpu_times()
    time.sleep(seconds)
    after = process.cpu_times()
    return float(after.user + after.system - before.user - before.system)


def its_end_cuts_no_stream(run: Steered) -> None:
    with ThreadPoolExecutor(4) as pool:
        streams = [pool.submit(call, run, "policy", 300, True) for _ in range(4)]
        time.sleep(3)
        assert not any(one.done() for one in streams)
        run.process.terminate()
        heard = [one.result() for one in streams]
    assert [one.fault for one in heard] == [None] * 4
    run.process.wait(150)
    with run.store.read() as tx:
        rows = [completions.get(tx, one.id) for one in heard]
    assert [one.status for one in rows if one is not None] == ["complete"] * 4
