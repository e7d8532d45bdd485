"""What a replica tells the store of itself, and when it may be counted as one of those that answer.

A first report brings it in, and so does the first after a silence for which it may have counted as gone: the others may
have come to a champion that it lacks.
"""

from __future__ import annotations

import logging
import os
import time

import sqlalchemy as sa

from kto_ray.config import Config
from kto_ray.processor import Precision
from kto_ray.records.adapters import CHAMPION
from kto_ray.records.replicas import ReplicaReport
from kto_ray.serve.policy.shelf import Shelf
from kto_ray.store import Store, adapters, leases, replicas

log = logging.getLogger(__name__)


class Reports:
    """Of one replica. Its calls wait for the store."""

    def __init__(self, config: Config, store: Store, shelf: Shelf, replica: str, precision: Precision) -> None:
        self._config, self._store, self._shelf = config, store, shelf
        self._replica, self._precision = replica, precision
        self._told_at = float("-inf")  # by the monotonic clock
        self._left_behind = False

    @property
    def silent(self) -> bool:
        """Whether nothing has been told for so long that the others may go on without it."""
        return time.monotonic() - self._told_at > replicas.BREAK * self._config.serve.heartbeat_timeout_s

    @property
    def left_behind(self) -> bool:
        """Whether they have: it lacks what all of them hold, and still cannot reach the store."""
        return self._left_behind and self.silent

    def lacks_what_all_hold(self) -> None:
        """It was asked for such a version, and could not look it up."""
        self._left_behind = self.silent

    def tell(self) -> None:
        """Unless the way to the store took so long that it has been silent by now."""
        with self._store.write() as tx:
            if self.silent:
                return
            self._tell(tx)
        self._told()

    def come_in(self, waited: bool) -> bool:
        """Report for the first time, if it is as it should be. While that is decided, no alias moves: or a replica
        could come in with the champion of a moment ago."""
        with self._store.write() as tx:
            champion = self._champion_for_now(tx)
            live = replicas.live(tx, self._config.serve.heartbeat_timeout_s)
            if not self._comes_in(champion, any(champion in other.held for other in live), waited):
                return False
            self._tell(tx)
        self._told()
        return True

    def come_back(self) -> None:
        """Report after a silence, once it holds the champion or can say why not, likewise. It is asked all the same,
        and so waits for no other to hold it."""
        with self._store.write() as tx:
            champion, self._left_behind = self._champion_for_now(tx), False
            if champion not in (self._config.base_name, *self._shelf.held, *self._shelf.faults):
                return
            self._tell(tx)
        self._told()
        log.warning("replica %s is heard of again, after a silence", self._replica)

    def _champion_for_now(self, tx: sa.Connection) -> str:
        """Until the transaction ends."""
        leases.stand_still(tx, leases.CONTROLLER)
        return adapters.aliases(tx, self._config.base_name)[CHAMPION]

    def _comes_in(self, champion: str, others_hold: bool, waited: bool) -> bool:
        if champion in (*self._shelf.held, self._config.base_name):
            return waited or not self._shelf.loading  # the rest has been tried
        fault = self._shelf.faults.get(champion)
        if fault is None or others_hold or not (fault.refused or waited):
            return False
        words = "replica %s comes in without the champion %s, for which another answers until it can be loaded: %s"
        log.error(words, self._replica, champion, fault.reason)
        return True

    def _told(self) -> None:
        self._told_at, self._left_behind = time.monotonic(), False

    def _tell(self, tx: sa.Connection) -> None:
        report = ReplicaReport(
            replica=self._replica,
            node=os.uname().nodename,
            pid=os.getpid(),
            held=self._shelf.held,
            errors=self._shelf.faults,
            dtype=self._precision.dtype,
            dtype_why=self._precision.why,
        )
        replicas.report(tx, report, self._config.serve.heartbeat_timeout_s)
