"""What a policy replica says of itself: the adapters that it holds, and the precision that it computes in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

LACKED = "adapter_unavailable"  # the type of a replica's error that lacks the version it is asked for


@dataclass(frozen=True, slots=True)
class LoadFault:
    """Why a replica could not load an adapter at its last try, or has not yet; it goes on trying. `refused`: for what
    its files are, and not for what stood in the way. `age_s`: since the first try that failed, or goes on."""

    reason: str
    refused: bool
    tries: int = 1
    age_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """What a live policy replica says of itself: the adapters it has loaded and probed, and what it computes in."""

    replica: str
    node: str
    pid: int
    held: tuple[str, ...]
    heartbeat_at: float = 0.0  # by the clock of the store, which sets it
    errors: Mapping[str, LoadFault] = field(default_factory=dict)  # of adapters that it is to hold and does not
    dtype: str = "auto"  # the precision that it decided on, which training and gate then take too
    dtype_why: str = ""


def held_by_all(live: Sequence[ReplicaReport]) -> frozenset[str]:
    """The adapters that every live replica holds, which any of them can serve; none where none is live."""
    return frozenset.intersection(*(frozenset(replica.held) for replica in live)) if live else frozenset()


def champions_answer(champion: str, previous: str | None, base: str, live: Sequence[ReplicaReport]) -> str:
    """Who answers where the champion is asked for: itself, unless a live replica says that it cannot load it. Then the
    `previous` champion if every live replica holds that, else the base model. None: there is none, or it was left for
    being worse.

    A replica that says nothing of the champion is asked for it all the same, for it loads what it is asked for.
    """
    if not any(champion in replica.errors and champion not in replica.held for replica in live):
        return champion
    return previous if previous is not None and previous in held_by_all(live) else base
