"""Serve's log of a replica, kept through the start of vLLM's engine.

The engine configures logging with `dictConfig`, which first closes all handlers of the process. Serve's is a
`MemoryHandler`: closed, it forgets the file that it writes to, and holds for ever whatever comes, a record of 2 KiB for
each request. (Ray Data did the same to Serve until ray-project/ray#57169.)
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import MemoryHandler

SERVE = "ray.serve"  # Serve's logger in a replica


@contextmanager
def kept() -> Iterator[None]:
    """Whatever configures logging within, Serve's handlers write on where they did."""
    handlers = [handler for handler in logging.getLogger(SERVE).handlers if isinstance(handler, MemoryHandler)]
    targets = [handler.target for handler in handlers]
    try:
        yield
    finally:
        for handler, target in zip(handlers, targets, strict=True):
            handler.setTarget(target)  # a file that was closed is opened again by the next record
            handler.flush()
