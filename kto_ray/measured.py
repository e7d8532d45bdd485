"""By which code, where and when something was measured: figures mean little without it."""

from __future__ import annotations

import os
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kto_ray.processor import here


def record(began: float) -> dict[str, Any]:
    """Of a measurement that began at that time (seconds since the epoch) and has just ended."""
    processor = here()
    return {
        "commit": commit(),
        "processor": processor.name,
        "instructions": list(processor.instructions),
        "cores": len(os.sched_getaffinity(0)),
        "at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(began)),
        "took_s": time.time() - began,
    }


def commit() -> str:
    """Of the checkout that this code stands in, with a + where it was changed; the version where it is none."""
    git = ("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--abbrev=7", "--exclude=*")
    try:
        told = subprocess.run(git, capture_output=True, text=True, check=False, timeout=10)
    except OSError:
        return version("kto-ray")
    return told.stdout.strip() or version("kto-ray")
