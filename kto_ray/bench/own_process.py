"""A measurement in a process of its own: what one leaves behind, memory, threads or a running Ray, reaches no other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def ask(module: str, request: Mapping[str, Any], environment: Mapping[str, str], what: str) -> dict[str, Any]:
    """Run `module`, which calls `answer`, and give what it found.

    Args:
        request: what the module is to do, as JSON has it.
        environment: variables beside the present ones.
        what: names the measurement in an error.

    Raises:
        RuntimeError: it failed; its last words are in the message.
    """
    with tempfile.TemporaryDirectory() as folder:
        asked, found = Path(folder) / "asked.json", Path(folder) / "found.json"
        asked.write_text(json.dumps(request))
        done = subprocess.run(
            [sys.executable, "-m", module, str(asked), str(found)],
            env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"measuring {what} failed:\n{done.stderr[-2000:]}")
        result: dict[str, Any] = json.loads(found.read_text())
        return result


def answer(work: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """The other side: do what the first file asks, and write what was found to the second."""
    Path(sys.argv[2]).write_text(json.dumps(work(json.loads(Path(sys.argv[1]).read_text()))))
