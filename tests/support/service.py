"""A real service (`kto-ray serve`: Ray, vLLM, gateway, controller) for tests, driven over HTTP as users do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil

from kto_ray.config import Config, load_config
from kto_ray.store import Store, open_store

T = TypeVar("T")

# Small and quick, and a gate that lets any sane candidate pass: what is tested here is the loop, not the learning.
QUICK = (
    "model.max_model_len=384",
    "data.max_length=160",
    "data.max_user_share=0.2",
    "kto.learning_rate=1e-4",
    "train.checkpoint_steps=2",
    "loop.min_labels=48",
    "loop.max_rounds=1",
    "loop.tick_s=0.3",
    "data.holdout_share=0.3",
    "gate.min_holdout=2",
    "gate.min_holdout_users=5",
    "gate.min_auc=0",
    "gate.min_auc_gain=-1",
    "gate.confidence=0.6",
    "gate.max_repetition=1",
    "gate.max_truncated_rise=1",
    "gate.guard_max_tokens=16",
    "gate.guard_prompts=16",
    "gate.suite_margin=0.9",
    "rollout.stages=[{name: canary, weight: 0.3, exposed: 2}, {name: ab, weight: 0.5, decides: true}]",
    "rollout.new_users=true",
    "rollout.settle_hours=0",
    "rollout.min_hours=0",
    "rollout.min_users=5",
    "rollout.max_fault_rise=1",
    "rollout.max_style_rise=1",
    "rollout.holdback=0",
    "rollout.base_holdback=0",
)


@dataclass
class Service:
    """A running service. Answers are httpx responses."""

    url: str
    config: Config
    process: subprocess.Popen[str]

    def __post_init__(self) -> None:
        self.client = httpx.Client(base_url=self.url, timeout=120, headers={"X-Kto-Act": "1"})
        self.store: Store = open_store(self.config.database_url)

    def chat(self, content: str = "Why is the sky blue?", user: str | None = None, **body: Any) -> httpx.Response:
        base = {"model": "policy", "messages": [{"role": "user", "content": content}], "max_tokens": 16}
        return self.client.post("/v1/chat/completions", json={**base, **({"user": user} if user else {}), **body})

    def thumb(self, completion_id: str, value: bool, **headers: str) -> httpx.Response:
        body = {"completion_id": completion_id, "kind": "thumb", "value": value}
        return self.client.post("/v1/feedback", json=body, headers=headers)

    def get(self, path: str) -> Any:
        return self.client.get(path).raise_for_status().json()

    def wait(self, what: str, found: Callable[[], T | None], timeout_s: float = 300.0) -> T:
        """Poll until `found` gives something; fails with the loop's state."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"the service ended with {self.process.returncode}"
            if (value := found()) is not None:
                return value
            time.sleep(0.3)
        raise AssertionError(f"{what} did not happen within {timeout_s:.0f} s; loop: {self.get('/v1/loop')}")

    def wait_stage(self, *stages: str, timeout_s: float = 300.0) -> Any:
        """The newest round, once it stands in one of the stages."""

        def reached() -> Any:
            rounds = self.get("/v1/loop")["rounds"]
            return rounds[-1] if rounds and rounds[-1]["stage"] in stages else None

        return self.wait(f"a round in {stages}", reached, timeout_s)


@contextmanager
def service(folder: Path, port: int, *overrides: str) -> Iterator[Service]:
    """Start `kto-ray serve` in a process of its own, wait until it is ready, stop it as a service manager does."""
    settings = (f"home={folder}/home", f"http.port={port}", *QUICK, *overrides)
    arguments = [item for setting in settings for item in ("--set", setting)]
    with (folder / "serve.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "kto_ray", "serve", *arguments], stdout=log, stderr=subprocess.STDOUT, text=True
        )
        url = f"http://127.0.0.1:{port}"
        try:
            wait_ready(process, url, folder / "serve.log")
            yield Service(url, load_config(None, settings), process)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(90)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        told = (folder / "serve.log").read_text()
        assert process.returncode == 0 and told.rstrip().endswith("stopping"), f"{process.returncode}:\n{told[-3000:]}"


def wait_ready(process: subprocess.Popen[str], url: str, log: Path, timeout_s: float = 420.0) -> None:
    """Until it answers that it is."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        assert process.poll() is None, f"serve ended with {process.returncode}:\n{log.read_text()[-3000:]}"
        try:
            if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise AssertionError(f"not ready within {timeout_s:.0f} s:\n{log.read_text()[-3000:]}")


def give_labels(run: Service, users: int, chats: int = 2) -> int:
    """Users chat and judge: short answers up, long ones down would be a taste; here every second one is up."""

    def one(i: int) -> int:
        answer = run.chat(f"Tell me about the number {i}.", user=f"user-{i % users}", max_tokens=12 + i % 5)
        answer.raise_for_status()
        assert run.thumb(answer.json()["id"], i % 2 == 0).status_code == 201
        return 1

    with ThreadPoolExecutor(16) as pool:
        return sum(pool.map(one, range(users * chats)))


class Traffic:
    """Users who chat all the time, in the background. Whoever gets the challenger is pleased; others are not."""

    def __init__(self, run: Service, threads: int = 3, pause_s: float = 0.5) -> None:
        self.run = run
        self.pause_s = pause_s
        self.sent = 0
        self.thumbs = 0
        self.failures: list[str] = []
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._users, args=(i,)) for i in range(threads)]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _users(self, lane: int) -> None:
        n = 0
        while not self._stop.is_set():
            n += 1
            user = f"visitor-{lane}-{n}"
            try:
                answer = self.run.chat("Say hello.", user=user, max_tokens=8)
                if answer.status_code == 200:
                    challenger = answer.json()["system_fingerprint"] != "policy@base"
                    judged = self.run.thumb(answer.json()["id"], challenger)
                    problem = None if judged.status_code == 201 else f"thumb {judged.status_code} {judged.text}"
                else:
                    problem = f"chat {answer.status_code} {answer.text}"
            except httpx.HTTPError as error:
                problem = repr(error)
            with self._lock:
                self.sent += 1
                self.thumbs += problem is None
                if problem:
                    self.failures.append(problem)
            self._stop.wait(self.pause_s)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def ended(process: psutil.Process) -> bool:
    """Also where nobody has asked how."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
