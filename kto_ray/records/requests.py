"""What an operator asks of the loop, and what it answers."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Done:
    """It was done; `words` say what happened."""

    words: str


@dataclass(frozen=True, slots=True)
class Refused:
    """Nothing was done; `words` say why."""

    words: str


Answer = Done | Refused

NONE = "none in progress"  # a target that nothing has: an act is not for what begins after it was asked


@dataclass(frozen=True, slots=True)
class Request:
    """An act that was asked for. `target` is what it means: a rollout, a candidate, the champion to leave, a round, or
    of a reset why; `NONE` where there was none when it was asked, None for what means none (run, forget). One that
    `expired` before a controller saw it is not done any more. `who` asks, where the act keeps a name."""

    id: int
    act: Act | str  # a text where only a newer program knows it
    target: str | None = None
    expired: bool = False
    who: str | None = None


class Act(enum.StrEnum):
    """What can be asked."""

    RUN = "run"  # begin a round now
    APPROVE = "approve"  # a candidate that has passed the gate may meet users
    REJECT = "reject"  # it may not
    PROMOTE = "promote"
    ABORT = "abort"
    PAUSE = "pause"
    RESUME = "resume"
    ROLLBACK = "rollback"
    END = "end"  # the round in progress, whatever its stage
    RESET_BUDGET = "reset-budget"  # begin the error budget of the loop's life anew
    FORGET = "forget"  # let go of what holds, or learnt from, rows that were erased; asked by an erasure alone


# What an act's target is, by the name of the parameter that gives it; none where it has no target.
MEANS: Mapping[Act, str] = MappingProxyType(
    {
        Act.APPROVE: "candidate",
        Act.REJECT: "candidate",
        Act.PROMOTE: "rollout",
        Act.ABORT: "rollout",
        Act.PAUSE: "rollout",
        Act.RESUME: "rollout",
        Act.ROLLBACK: "champion",
        Act.END: "round",
        Act.RESET_BUDGET: "why",
    }
)
