"""The Serve deployment around the loop: one replica, whose thread steps; a lease keeps two apart."""

from __future__ import annotations

import logging
import threading
import time

import sqlalchemy as sa
from ray.serve.handle import DeploymentHandle

from kto_ray.config import Config
from kto_ray.loop.lease import LostLease
from kto_ray.loop.step import Loop
from kto_ray.loop.upkeep import Upkeep

log = logging.getLogger(__name__)

AGAIN_S = 60.0  # after which it is told again that another controller acts


class Controller:
    """The Serve deployment around the loop: one replica, restarted by Serve when it dies."""

    def __init__(self, config: Config, policy: DeploymentHandle) -> None:
        self._tick_s = config.loop.tick_s
        self._loop = Loop(config, policy)
        self._told: tuple[tuple[str, int] | None, float] = None, float("-inf")  # whose lease was told of, and when
        self._upkeep = Upkeep(config)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        more = False
        while True:
            if not more:
                time.sleep(self._tick_s)
            more = False  # after an error, too, it rests
            try:
                more = self._loop.step()
                self._upkeep.look()
            except LostLease as lost:
                self._tell(lost)
            except sa.exc.SQLAlchemyError as error:  # an outage of the store stops changes; the next tick tries again
                log.warning("the store is away or refuses what the controller writes: %s", error)
            except OSError as error:  # one of the artifacts' storage does the same
                log.warning("the storage is away: %s", error)

    def _tell(self, lost: LostLease) -> None:
        """At once when another takes over, then once a minute."""
        who = None if lost.holder is None else (lost.holder.node, lost.holder.pid)
        if who != self._told[0] or time.monotonic() - self._told[1] > AGAIN_S:
            self._told = who, time.monotonic()
            log.warning("%s", lost)

    def check_health(self) -> None:
        """Called by Serve, which replaces a controller whose thread ended."""
        if not self._thread.is_alive():
            raise RuntimeError("the controller's loop ended with an error; see its log")
