"""The benchmark of users beside the gate: what counts as a first word, which answers fail, and ratios by hand."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from rich.console import Console

from kto_ray.bench.live import Window, compared, table, users

ROLE, WORD, END = ({"choices": [{"delta": d}]} for d in ({"role": "assistant", "content": ""}, {"content": "Hi"}, {}))


@contextmanager
def streaming(*events: str, status: int = 200) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that answers every chat with these events."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status)
            self.end_headers()
            for event in events:
                self.wfile.write(f"data: {event}\n\n".encode())

        def log_message(self, *_: Any) -> None:
            pass

    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{served.server_port}", asked
    finally:
        served.shutdown()
        served.server_close()


def some(number: int) -> Any:
    """Goes on for so many requests."""
    left = iter([True] * number)
    return lambda: next(left, False)


def test_users_are_timed_to_the_first_word_of_answers_that_come_whole() -> None:
    whole = [json.dumps(event) for event in (ROLE, WORD, END)]
    with streaming(*whole, "[DONE]") as (url, asked):
        seen = asyncio.run(users(url, 500, 1, some(5)))
    assert (len(seen.first_ms), seen.failed, len(asked)) == (5, 0, 5) and min(seen.first_ms) > 0
    assert all(body["stream"] and "priority" not in body for body in asked)
    for events in (whole, [whole[0], "[DONE]"], [whole[1], json.dumps({"error": {"message": "no"}})]):
        with streaming(*events) as (url, _):
            seen = asyncio.run(users(url, 500, 1, some(2)))
        assert (seen.first_ms, seen.failed) == ((), 2)
    with streaming(json.dumps({"error": {"message": "no"}}), status=503) as (url, _):
        assert asyncio.run(users(url, 500, 1, some(2))).failed == 2


def test_both_windows_are_asked_the_same() -> None:
    with streaming("[DONE]") as (url, asked):
        for _ in range(2):
            asyncio.run(users(url, 500, 3, some(4)))
    prompts = [body["messages"][0]["content"] for body in asked]
    assert sorted(prompts[:4]) == sorted(prompts[4:])


@pytest.mark.parametrize(("slower", "met"), [(1.05, True), (1.2, False)])
def test_figures_are_of_all_windows_together(slower: float, met: bool) -> None:
    alone = [Window(9.0, tuple(float(ms) for ms in range(1, 102)), 0), Window(8.0, (1.0,) * 101, 1)]
    beside = [Window(w.seconds, tuple(slower * ms for ms in w.first_ms), 0) for w in alone]
    found = compared(list(zip(beside, alone, strict=True)))
    assert (found["alone_requests"], found["alone_failed"], found["window_s"]) == (202, 1, [9.0, 8.0])
    assert found["alone_p50_ms"] == 1.0 and found["alone_p99_ms_by_window"] == [100.0, 1.0]
    assert found["p99_ratio"] == pytest.approx(slower) and found["p99_ratio_met"] is met
    shown = io.StringIO()
    Console(file=shown, width=150).print(table({"per_s": 1.0, "guard_at_once": 4, **found}))
    assert f"at most 1.1: {'met' if met else 'missed'}" in shown.getvalue() and "202" in shown.getvalue()
