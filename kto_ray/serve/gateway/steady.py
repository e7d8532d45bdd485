"""What a gateway's process needs so that its event loop never stands still for long."""

from __future__ import annotations

import gc
import sys

SWITCH_S = 0.0005  # after which a thread that computes lets another; Python's own 5 ms are a wait at each statement


def steady() -> None:
    """To be called once all is loaded. The collector would otherwise walk what Ray and FastAPI have brought, a million
    objects that stay, for a tenth of a second every few seconds."""
    sys.setswitchinterval(SWITCH_S)
    gc.collect()
    gc.freeze()
