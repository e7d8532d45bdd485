"""A controller killed around any of its writes: the next one comes to the same end, and nothing is there twice."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from kto_ray.config import Config, load_config
from kto_ray.loop.step import Loop
from kto_ray.records.requests import Act
from kto_ray.records.rounds import Ended, Outcome, Stage
from kto_ray.store import (
    adapters,
    open_store,
    requests,
    rounds,
)
from kto_ray.store.schema import metadata
from tests.support.loop import V1, Jobs, hold, labels


class Killed(BaseException):
    """The controller's process ends here."""


class Mortal(Loop):
    """A controller that is killed at its write number `at`, before or after the commit."""

    def __init__(self, config: Config, at: int | None, committed: bool) -> None:
        super().__init__(config, policy=None)
        self.writes = 0
        self._at, self._committed = at, committed

    @contextmanager
    def _act(self) -> Iterator[sa.Connection]:
        self.writes += 1
        now = self.writes == self._at
        with super()._act() as tx:
            yield tx
            if now and not self._committed:
                raise Killed
        if now:
            raise Killed


def a_whole_round(config: Config, at: int | None = None, committed: bool = False) -> tuple[dict[str, Any], int]:
    """What is in the store after a round that an operator promotes, and how often its first controller wrote."""
    store = open_store(config.database_url)
    labels(store)
    hold(store, V1)
    loop, asked = Mortal(config, at, committed), False
    first = loop
    for _ in range(30):
        try:
            loop.step()
        except Killed:
            with store.write() as tx:
                tx.exec_driver_sql("UPDATE leases SET expires_at = 0")
            loop = Mortal(config, None, False)
        with store.write() as tx:
            newest = rounds.newest(tx)
            if newest is not None and newest.stage is Stage.ROLLOUT and not asked:
                requests.ask(tx, Act.PROMOTE, time.time())
                asked = True
            if newest is not None and isinstance(newest.state, Ended):
                there: dict[str, Any] = {
                    table.name: tx.execute(sa.select(sa.func.count()).select_from(table)).scalar()
                    for table in metadata.sorted_tables
                }
                there |= adapters.aliases(tx, "policy@base")
                there |= {"outcome": newest.state.outcome, "answered": type(requests.answered(tx, 1))}
                return there, first.writes
    raise AssertionError(f"{newest} has not ended")


@pytest.mark.parametrize("committed", [False, True])
def test_killed_around_any_write_the_next_controller_comes_to_the_same_end(
    tmp_path: Path, jobs: Jobs, committed: bool
) -> None:
    def config(name: str) -> Config:
        return load_config(None, (f"home={tmp_path / name}", "loop.min_labels=8"))

    whole, writes = a_whole_round(config("whole"))
    assert whole["outcome"] is Outcome.PROMOTED and whole["champion"] == V1 and writes > 6
    for at in range(1, writes + 1):
        assert a_whole_round(config(f"killed-{at}"), at, committed)[0] == whole, f"killed at write {at}"
