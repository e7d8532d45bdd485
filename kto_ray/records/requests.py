"""What an operator asks of the loop, and what it answers."""

from __future__ import annotations

import enum
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Done:
    """It was done; `words` say what happened."""

    words: str


@dataclass(frozen=True, slots=True)
class Refused:
    """Nothing was done; `words` say why."""

    words: str


Answer = Done | Refused


class Act(enum.StrEnum):
    """What can be asked."""

    RUN = "run"  # begin a round now
    PROMOTE = "promote"
    ABORT = "abort"
    PAUSE = "pause"
    RESUME = "resume"
    ROLLBACK = "rollback"
    FORGET = "forget"  # let go of what holds, or learnt from, rows that were erased; asked by an erasure alone
