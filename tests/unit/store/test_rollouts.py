"""Looks at a test come back in the order in which they saw it."""

from __future__ import annotations

from kto_ray.records.rollouts import Look, RolloutState, RolloutStatus
from kto_ray.store import Store, rollouts


def look(at: float, stage: int, settled: int, exposed: int) -> Look:
    return Look("r", at, stage, settled, 0.0, settled, 0.0, -1.0, 1.0, exposed, exposed)


def test_looks_are_ordered_by_what_they_saw_whatever_the_clock_said(store: Store) -> None:
    seen = [look(9.0, 0, 0, 1), look(8.0, 0, 0, 2), look(3.0, 0, 1, 2), look(4.0, 1, 0, 1), look(2.0, 1, 1, 1)]
    with store.write() as tx:
        rollouts.put(tx, RolloutState("r", "policy@base", "policy@v1", "s", 1, 0.5, RolloutStatus.RUNNING, 1.0, 2.0))
        for i, each in enumerate(seen, start=1):
            rollouts.add_look(tx, each)
            assert rollouts.last_look(tx, "r") == each
            assert rollouts.looks(tx, "r") == seen[:i]
