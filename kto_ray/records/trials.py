"""A user's part in a stage of an A/B test, and what the stage has come to. A user is one trial."""

from __future__ import annotations

from dataclasses import dataclass

STYLES = ("asked_back", "long")  # of answers that some may want
# What may be wrong with the first answer that a user got
FAULTS = ("failed", "aborted", "cut_off", "slow", "tool_error", *STYLES)
REACTIONS = ("regenerated", "disagreed", "edited")  # what a user may do about their answers
GUARDS = (*FAULTS, *REACTIONS)  # none may be more frequent than with the champion
# Whether a user was asked for a thumb, and of the first answer on which they were: whether they gave one, and upwards
SOLICITED = ("solicited", "rated", "rated_up")


# Whether users count who came since a test began: all, none, or those of the applications that are named
NewUsers = bool | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Exposed:
    """Users of one arm who got an answer in the stage, and of how many the first one failed, was left by the client,
    was cut off, began late, called tools wrongly, asked back or was long. `known` of them count: those first seen
    before the test, or all by config. `observed` of these have had the same time each to react: so many of them asked
    for another answer, disagreed, edited one, were asked for a thumb, gave one, gave it upwards."""

    users: int = 0
    known: int = 0
    failed: int = 0
    aborted: int = 0
    cut_off: int = 0
    slow: int = 0
    tool_error: int = 0
    asked_back: int = 0
    long: int = 0
    observed: int = 0
    regenerated: int = 0
    disagreed: int = 0
    edited: int = 0
    solicited: int = 0
    rated: int = 0
    rated_up: int = 0


@dataclass(frozen=True, slots=True)
class Settled:
    """A trial that is settled, for good: `outcome` in [0, 1] is the mean of a user's judgements that stood then."""

    challenger: bool
    outcome: float


@dataclass(frozen=True, slots=True)
class Part:
    """A user's part in a stage, with its times in seconds since the epoch. `settled_at` and `outcome` are None where
    nothing was judged; `known` says whether it counts. `reactions` (REACTIONS and SOLICITED) are None until
    `react_by`."""

    challenger: bool
    known: bool
    first_at: float
    faults: tuple[str, ...]
    settled_at: float | None
    outcome: float | None
    react_by: float | None = None
    reactions: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Votes:
    """Who judged of late: users who were known before, as of a test that would have begun then; the mean of what they
    said, in [0, 1]; and of how many days that is."""

    users: int
    rate: float
    days: float


@dataclass(frozen=True, slots=True)
class Standing:
    """A stage of a test: users exposed, by arm, and all settled trials in the order in which they settled."""

    rollout: str
    stage: int
    champion: Exposed = Exposed()
    challenger: Exposed = Exposed()
    trials: tuple[Settled, ...] = ()
    waiting: int = 0  # users who have judged and are not settled yet
