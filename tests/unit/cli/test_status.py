"""What `kto-ray status` says of what stands still, and why."""

from __future__ import annotations

import io
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from kto_ray.cli.service import _state, _status_table
from kto_ray.config import Config
from kto_ray.config.deciding import RolloutSection
from kto_ray.records.rollouts import Look
from kto_ray.records.rounds import Loading
from kto_ray.rollout import holdback, machine
from kto_ray.stats.detector import Watch
from kto_ray.status.metrics import metrics
from kto_ray.store import Store, leases, rollouts, rounds

LACKS = "1 of 2 live replicas do not hold the adapter; r2, at each try: no route"


@pytest.fixture
def config(sqlite_store: Store, tmp_path: Path) -> Config:
    return Config(home=str(tmp_path))


def shown(config: Config, **changes: Any) -> str:
    console = Console(width=400, file=io.StringIO())
    with console.capture() as captured:
        console.print(_status_table(_state(config) | {"running": True} | changes))
    return captured.get()


def test_that_no_controller_acts_is_told_where_people_look(sqlite_store: Store, config: Config) -> None:
    def acts() -> float:
        with sqlite_store.read() as tx:
            return metrics(tx, config)["kto_ray_controller_acts"][1]

    assert "no controller acts: rounds, tests and holdbacks stand still" in shown(config) and acts() == 0
    assert "no controller" not in shown(config, running=False), "of course none does"
    with sqlite_store.write() as tx:
        assert leases.take(tx, leases.CONTROLLER, "node-7:12:abc", 12)
    assert "no controller" not in shown(config) and acts() == 1
    assert _state(config)["loop"]["controller"]["in_words"].startswith("process 12 on node-7")
    with sqlite_store.write() as tx:
        tx.exec_driver_sql("UPDATE leases SET expires_at = expires_at - 11")
    assert "no controller acts" in shown(config) and acts() == 0


def test_what_a_round_a_test_and_a_rollback_wait_for_is_told(sqlite_store: Store, config: Config) -> None:
    now, rules = time.time(), RolloutSection()
    test = machine.advance(rules, machine.start(rules, "policy@v1", "policy@v2", "r", "salt", 0.005, now), now)
    back = holdback.start(rules, "policy@v1", "policy@v0", "holdback-1", "salt", now)
    assert back is not None
    with sqlite_store.write() as tx:
        begun = rounds.insert(tx, now).to(Loading("s", "policy@v2"), now)
        rounds.update(tx, begun.waits(f"the first; {LACKS}"))
        rollouts.put(tx, replace(test, reason=f"counts nobody meanwhile: {LACKS}"))
        rollouts.add_look(tx, Look("r", now, 1, 3, 1, 2, 2, -0.5, 0.75))
        rollouts.put(tx, back)
        assert metrics(tx, config)["kto_ray_rollback_waits"][1] == 0
        alarm = {**asdict(Watch()), "log_stakes": [9.0] * 4, "folded": 0, "at": now}
        rollouts.put(
            tx, replace(back, watch=alarm, reason=f"policy@v0 is better after all; the rollback waits: {LACKS}")
        )
        assert metrics(tx, config)["kto_ray_rollback_waits"][1] == 1
    told = shown(config)
    assert f"the first; {LACKS}" in told
    assert f"; it counts nobody meanwhile: {LACKS}" in told
    assert f"the rollback waits: {LACKS}" in told
