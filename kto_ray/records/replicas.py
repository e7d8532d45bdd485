"""What a policy replica says of itself: the adapters that it holds, and the precision that it computes in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """What a live policy replica says of itself: the adapters it has loaded and probed, and what it computes in."""

    replica: str
    node: str
    pid: int
    held: tuple[str, ...]
    heartbeat_at: float = 0.0  # by the clock of the store, which sets it
    errors: Mapping[str, str] = field(default_factory=dict)  # adapter name -> why it could not be loaded
    dtype: str = "auto"  # the precision that it decided on, which training and gate then take too
    dtype_why: str = ""


def held_by_all(live: Sequence[ReplicaReport]) -> frozenset[str]:
    """The adapters that every live replica holds, which any of them can serve; none where none is live."""
    return frozenset.intersection(*(frozenset(replica.held) for replica in live)) if live else frozenset()
