"""What a loop does with versions, by hand: publishes one, waits until it serves, makes it champion, lets one go."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kto_ray.bench.adapters import published
from kto_ray.config import Config
from kto_ray.records.adapters import CHALLENGER, CHAMPION
from kto_ray.records.replicas import ReplicaReport, held_by_all
from kto_ray.store import Store, adapters, replicas

# Between two looks at what the replicas tell; looking takes from the same cores
LOADING_POLL_S, LEAVING_POLL_S = 0.05, 0.2
PATIENCE_S = 120.0


@dataclass(frozen=True, slots=True)
class Swap:
    """One cycle, in seconds."""

    publish_s: float  # check, sign and write
    serving_s: float  # from published to every replica having told that it holds it, loaded and probed
    released_s: float  # from the flip to no replica holding the one before


class Swapper:
    def __init__(self, config: Config, store: Store, weights: Sequence[str]) -> None:
        """
        Args:
            weights: folders with an adapter's files each, which are published in turn, each time as a new version.
        """
        self._config, self._store, self._weights = config, store, weights
        self.versions: dict[str, int] = {}  # version, oldest first -> which weights it has

    def begin(self) -> None:
        """The first champion, before the service starts."""
        self._want(self._publish(), CHAMPION)

    def cycle(self) -> Swap:
        """Raises:
        RuntimeError: a replica did not load the new version, or did not let go of the old one, in time.
        """
        before, began = next(reversed(self.versions)), time.monotonic()
        name = self._publish()
        published_at = time.monotonic()
        self._want(name, CHALLENGER)
        self._until(lambda live: name in held_by_all(live), f"load {name}", name, LOADING_POLL_S)
        serving_at = time.monotonic()
        with self._store.write() as tx:
            adapters.set_alias(tx, CHAMPION, name, time.time())
            adapters.set_alias(tx, CHALLENGER, None, time.time())
        flipped_at = time.monotonic()
        gone = f"let go of {before}"
        self._until(lambda live: not any(before in one.held for one in live), gone, name, LEAVING_POLL_S)
        return Swap(published_at - began, serving_at - published_at, time.monotonic() - flipped_at)

    def _publish(self) -> str:
        number = len(self.versions)
        which = number % len(self._weights)
        version = published(self._config, self._weights[which], number + 1)
        with self._store.write() as tx:
            adapters.insert(tx, version)
        self.versions[version.name] = which
        return version.name

    def _want(self, name: str, alias: str) -> None:
        with self._store.write() as tx:
            adapters.set_alias(tx, alias, name, time.time())

    def _until(self, reached: Callable[[Sequence[ReplicaReport]], bool], what: str, name: str, poll_s: float) -> None:
        """What every replica says of itself; `name` is the version whose trouble is told."""
        section, deadline = self._config.serve, time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            with self._store.read() as tx:
                live = replicas.live(tx, section.heartbeat_timeout_s)
            if len(live) == section.replicas and reached(live):
                return
            time.sleep(poll_s)
        faults = "; ".join(replica.errors[name].reason for replica in live if name in replica.errors)
        raise RuntimeError(
            f"{len(live)} live replicas did not {what} within {PATIENCE_S:.0f} s: {faults or 'no fault'}"
        )
