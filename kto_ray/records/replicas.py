"""What a policy replica says of itself: the adapters that it holds, and the precision that it computes in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """What a live policy replica says of itself: the adapters it has loaded and probed, and what it computes in."""

    replica: str
    node: str
    pid: int
    held: tuple[str, ...]
    heartbeat_at: float
    errors: Mapping[str, str] = field(default_factory=dict)  # adapter name -> why it could not be loaded
    dtype: str = "auto"  # the precision that it decided on, which training and gate then take too
    dtype_why: str = ""
