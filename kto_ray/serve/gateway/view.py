"""What routing needs, read from the store every half second: a request waits for no query."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from kto_ray.config import Config
from kto_ray.records.keys import Key
from kto_ray.records.replicas import held_by_all
from kto_ray.records.rollouts import RolloutState
from kto_ray.rollout import assignment
from kto_ray.serve.gateway.errors import ApiError
from kto_ray.store import Store, adapters, keys, replicas, rollouts

log = logging.getLogger(__name__)

REFRESH_S = 0.5  # how old the view may be; serve.drain_s must be well above it


@dataclass(frozen=True, slots=True)
class View:
    aliases: Mapping[str, str]
    rollout: RolloutState | None
    servable: frozenset[str]  # held by every live replica, or the base
    keys: Mapping[str, Key]  # by their public ids, the revoked ones too

    def route(self, model: str, user: str | None, served_name: str) -> assignment.Route:
        """Raises:
        ApiError: 404, the model is not served here.
        """
        try:
            return assignment.route(model, user, served_name, self.aliases, self.rollout, self.servable)
        except assignment.UnknownModel as error:
            raise ApiError(404, str(error), param="model", code="model_not_found") from None


class Viewer:
    """Holds the newest view; routing goes on with the last one where the store cannot be read."""

    def __init__(self, config: Config, store: Store) -> None:
        self._config, self._store = config, store
        self.view = self._read()
        self._closed = threading.Event()
        threading.Thread(target=self._refresh_until_closed, daemon=True).start()

    def _read(self) -> View:
        config = self._config
        with self._store.read() as tx:
            live = replicas.live(tx, time.time(), config.serve.heartbeat_timeout_s)
            aliases, test = adapters.aliases(tx, config.base_name), rollouts.live(tx)
            known = {key.id: key for key in keys.every(tx)}
        return View(aliases, test, held_by_all(live) | {config.base_name}, known)

    def refresh(self) -> None:
        self.view = self._read()

    def close(self) -> None:
        """Read no more; the last view stands."""
        self._closed.set()

    def _refresh_until_closed(self) -> None:
        while not self._closed.wait(REFRESH_S):
            try:
                self.refresh()
            except sa.exc.SQLAlchemyError as error:
                log.warning("the store cannot be read: %s", error)
