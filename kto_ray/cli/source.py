"""Where a command reads what it shows: the running service's HTTP API, or the store where no service runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import httpx

from kto_ray.cli.common import read_store, store_there
from kto_ray.config import Config

if TYPE_CHECKING:
    import sqlalchemy as sa

    from kto_ray.status.rollouts import Replay

TIMEOUT_S = 30.0
KEY = "KTO_RAY_KEY"  # the environment's, of a service that asks for one
Shown = dict[str, Any]


class Source:
    """What is shown of a service, running or not. `running` says which."""

    def __init__(self, config: Config) -> None:
        self._config = config
        # Whatever proxy the environment names: the service is here.
        key = os.environ.get(KEY)
        headers = {"X-Kto-Act": "1", **({"Authorization": f"Bearer {key}"} if key else {})}
        self._http = httpx.Client(base_url=config.http.url, timeout=TIMEOUT_S, trust_env=False, headers=headers)
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
            return self._got(self._asked("GET", f"/v1/lineage/{quote(name, safe='')}"))
        from kto_ray.provenance.lineage import lineage

        store = store_there(self._config)
        try:
            return asdict(lineage(store, self._config, name))
        finally:
            store.close()

    def replayed(self, rollout: str | None) -> Replay:
        """What the config's rules would have made of a test, from the store."""
        from kto_ray.status import rollouts

        return read_store(self._config, lambda tx: rollouts.replayed(tx, self._config, rollout))

    def ask(self, noun: str, action: str, **meant: str | None) -> tuple[Shown, bool]:
        """Ask the controller for an act on a rollout or the loop, by what is `meant` (`records.requests.MEANS`); what
        it answered, and whether it was done.

        Raises:
            ValueError: no service runs.
        """
        if not self.running:
            raise ValueError(
                f"no service of {self._config.home!r} answers on {self._http.base_url} to {noun} {action}; start it "
                "with `kto-ray serve`"
            )
        query = urlencode({name: value for name, value in meant.items() if value is not None})
        answer = self._asked("POST", f"/v1/{noun}/{action}?{query}")
        if answer.status_code == 409:
            return {"action": action, "result": answer.json()["error"]["message"]}, False
        return self._got(answer), answer.status_code == 200

    def _get(self, path: str, query: Callable[[sa.Connection], Any]) -> Shown:
        if not self.running:
            return read_store(self._config, lambda tx: asdict(query(tx)))
        answer = self._asked("GET", path)
        told: Shown = answer.json() if answer.status_code == 503 else self._got(answer)  # not ready is an answer too
        return told

    def _asked(self, method: str, path: str) -> httpx.Response:
        """Raises:
        ValueError: the service went away.
        """
        try:
            return self._http.request(method, path)
        except httpx.HTTPError as error:
            raise ValueError(f"the service at {self._http.base_url} went away: {error}; ask again") from None

    def _got(self, answer: httpx.Response) -> Shown:
        told: Shown = answer.json()
        if answer.status_code in (401, 403):
            words = told["error"]["message"]
            raise ValueError(f"{words}; put a key with the scope admin into the environment as {KEY}")
        if "error" in told:
            raise ValueError(told["error"]["message"])
        return told

    def _answers(self) -> bool:
        """Whether a service of this very store listens where the config says."""
        try:
            told = self._http.get("/healthz", timeout=5).json()
        except (httpx.HTTPError, ValueError):
            return False
        return isinstance(told, dict) and told.get("store") == self._config.store_mark
