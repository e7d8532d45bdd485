"""Looks all the time, beside a test, whether the champion is anything that a live replica lacks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import sqlalchemy as sa

from kto_ray.records.adapters import CHAMPION
from kto_ray.records.replicas import held_by_all
from kto_ray.store import adapters, open_store, replicas
from tests.support.service import Service
from tests.support.swaps import aliases


class Watch:
    def __init__(self, run: Service) -> None:
        self.run, self.store = run, open_store(run.config.database_url)
        self.looks, self.flips, self.wrong = 0, set[str](), list[str]()
        self.most = 0  # replicas at once
        self._done = threading.Event()
        self.threads = [threading.Thread(target=self._on, args=(look,)) for look in (self._rows, self._pages)]

    def stop(self) -> None:
        self._done.set()
        for thread in self.threads:
            thread.join()
        self.store.close()

    def _on(self, look: Callable[[], str | None]) -> None:
        while not self._done.wait(0.02):
            try:
                wrong = look()
            except (httpx.HTTPError, sa.exc.SQLAlchemyError) as error:
                wrong = repr(error)
            if wrong is not None:
                self.wrong.append(wrong)
            self.looks += 1

    def _rows(self) -> str | None:
        with self.store.read() as tx:
            live = replicas.live(tx, self.run.config.serve.heartbeat_timeout_s)
            champion = adapters.aliases(tx, self.run.config.base_name)[CHAMPION]
        self.flips.add(champion)
        self.most = max(self.most, len(live))
        return None if champion in held_by_all(live) else f"{champion} of {[(one.replica, one.held) for one in live]}"

    def _pages(self) -> str | None:
        """What the gateway says; where the champion changed between the two, the next look tells."""
        before = aliases(self.run)[CHAMPION]
        served = {model["id"] for model in self.run.get("/v1/models")["data"]}
        time.sleep(0.5)  # as old as its view may be
        if before != aliases(self.run)[CHAMPION] or before in served:
            return None
        again = {model["id"] for model in self.run.get("/v1/models")["data"]}
        return None if before in again else f"{before} is not among {sorted(again)}"


@contextmanager
def watched(run: Service) -> Iterator[Watch]:
    watch = Watch(run)
    for thread in watch.threads:
        thread.start()
    try:
        yield watch
    finally:
        watch.stop()
    assert watch.wrong == [] and watch.looks > 20, watch.looks
