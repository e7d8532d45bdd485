"""An engine whose replica was killed ends, too."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests.support.service import ended

PARENT_AND_CHILD = """
import multiprocessing, os, sys, threading, time
from kto_ray.serve.policy import parent

def child():
    if "watches" in sys.argv:
        parent.register()
        parent.register()
        assert sum(thread.name == parent.NAME for thread in threading.enumerate()) == 1
    print(os.getpid(), flush=True)
    time.sleep(60)

if __name__ == "__main__":
    parent.register()
    assert threading.active_count() == 1, "nobody's child is left alone"
    process = multiprocessing.get_context("spawn").Process(target=child)
    process.start()
    process.join()
"""


def test_it_ends_when_its_parent_is_killed_and_nobody_else_does(tmp_path: Path) -> None:
    file = tmp_path / "both.py"
    file.write_text(PARENT_AND_CHILD)
    for argument, ends in (("watches", True), ("does not", False)):
        with subprocess.Popen([sys.executable, str(file), argument], stdout=subprocess.PIPE, text=True) as parent:
            assert parent.stdout is not None
            child = psutil.Process(int(parent.stdout.readline()))
            assert child.is_running()
            parent.kill()
        until = time.monotonic() + (10 if ends else 1)
        while time.monotonic() < until and not ended(child):
            time.sleep(0.1)
        assert ended(child) is ends
        if not ends:
            child.kill()
