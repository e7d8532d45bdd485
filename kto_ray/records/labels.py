"""What a user made of an answer, once all that they said of it is weighed."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

ANONYMOUS = "anonymous"  # all who received an answer without a name: one user, for what a user may fill


class Verdict(enum.StrEnum):
    UP = "up"
    DOWN = "down"
    EDIT = "edit"  # another text in place of the answer: the text is desirable, the answer is not


@dataclass(frozen=True, slots=True)
class Label:
    """The one verdict of one user on one completion. `at` is the time of the event that decided it."""

    completion_id: str
    user: str  # who received the answer, or a reviewer
    verdict: Verdict
    at: float
    text: str | None = None  # the edited one
    seq: int = field(default=0, compare=False)  # of the event that decided it
    reviewer: bool = False  # by someone who may judge any answer: it trains, and is no vote
