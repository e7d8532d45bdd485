"""Where a command reads what it shows: the running service's HTTP API, or the store where no service runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import httpx

from kto_ray.cli.common import read_store
from kto_ray.config import Config

if TYPE_CHECKING:
    import sqlalchemy as sa

TIMEOUT_S = 30.0
Shown = dict[str, Any]


class Source:
    """What is shown of a service, running or not. `running` says which."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._url = f"http://{config.http.host}:{config.http.port}"
        self.running = self._answers()

    def loop(self) -> Shown:
        from kto_ray.status import rounds

        return self._get("/v1/loop", lambda tx: rounds.loop(tx, self._config))

    def adapters(self) -> Shown:
        from kto_ray.status import adapters

        return self._get("/v1/adapters", lambda tx: adapters.page(tx, self._config))

    def rollout(self) -> Shown:
        from kto_ray.status import rollouts

        return self._get("/v1/rollout", lambda tx: rollouts.page(tx, self._config))

    def readiness(self) -> Shown:
        from kto_ray.status.readiness import readiness

        return self._get("/readyz", lambda tx: readiness(tx, self._config))

    def lineage(self, name: str) -> Shown:
        """Raises:
        ValueError: nothing of that name is known.
        """
        if self.running:
            return self._got(httpx.get(f"{self._url}/v1/lineage/{name}", timeout=TIMEOUT_S))
        from kto_ray.provenance.lineage import lineage
        from kto_ray.store import open_store

        store = open_store(self._config.database_url)
        try:
            return asdict(lineage(store, self._config, name))
        finally:
            store.close()

    def steer(self, action: str) -> Shown:
        """Ask the controller for an act on the rollout; what it answered.

        Raises:
            ValueError: no service runs, or the controller refused.
        """
        if not self.running:
            raise ValueError(
                f"no service of {self._config.home!r} answers on {self._url} to {action}; start it with `kto-ray serve`"
            )
        return self._got(httpx.post(f"{self._url}/v1/rollout/{action}", timeout=TIMEOUT_S))

    def _get(self, path: str, query: Callable[[sa.Connection], Any]) -> Shown:
        if not self.running:
            return read_store(self._config, lambda tx: asdict(query(tx)))
        answer = httpx.get(self._url + path, timeout=TIMEOUT_S)
        told: Shown = answer.json() if answer.status_code == 503 else self._got(answer)  # not ready is an answer too
        return told

    def _got(self, answer: httpx.Response) -> Shown:
        told: Shown = answer.json()
        if "error" in told:
            raise ValueError(told["error"]["message"])
        return told

    def _answers(self) -> bool:
        """Whether a service of this very store listens where the config says."""
        try:
            told = httpx.get(f"{self._url}/healthz", timeout=5).json()
        except (httpx.HTTPError, ValueError):
            return False
        return isinstance(told, dict) and told.get("store") == self._config.store_mark
