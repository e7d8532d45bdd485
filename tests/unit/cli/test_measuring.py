"""A benchmark that is told to end takes along what it started."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import psutil

from tests.support.service import ended

BENCHMARK = """
import subprocess, sys
from concurrent.futures import ThreadPoolExecutor
from kto_ray.cli import measuring

@measuring.benchmark("waits")
def waits(run):
    "Two servers, one after the other."
    def serve(_):
        server = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        print(server.pid, flush=True)
        server.wait()
    with ThreadPoolExecutor(1) as pool:
        list(pool.map(serve, range(2)))

@measuring.app.command()
def other():
    "So that `waits` has a name."

measuring.app()
"""


def test_its_servers_end_with_it_and_no_other_starts() -> None:
    command = [sys.executable, "-c", BENCHMARK, "waits"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as bench:
        assert bench.stdout is not None
        server = psutil.Process(int(bench.stdout.readline()))
        bench.terminate()
        rest = bench.stdout.read()
        assert bench.wait(10) == 128 + signal.SIGTERM and rest == ""
    until = time.monotonic() + 10
    while time.monotonic() < until and not ended(server):
        time.sleep(0.1)
    assert ended(server)
