"""What the budget of the loop's life allows the next test, of the tests in the store."""

from __future__ import annotations

import pytest

from kto_ray.config.deciding import RolloutSection
from kto_ray.loop.trial import level_of
from kto_ray.records.requests import Act
from kto_ray.rollout import machine
from kto_ray.store import Store, rollouts


def test_an_operators_promotion_gives_no_level_back(sqlite_store: Store) -> None:
    section, levels = RolloutSection(), []
    for i in range(5):
        with sqlite_store.write() as tx:
            levels.append(level_of(tx, section))
            begun = machine.start(section, "policy@base", f"policy@v{i}", f"r{i}", "salt", levels[-1], float(i))
            rollouts.put(tx, begun)
            assert level_of(tx, section) == levels[-1], "what goes on is not spent yet"
            rollouts.put(tx, machine.apply(begun, Act.PROMOTE, i + 0.5))
    assert levels == pytest.approx([0.005 * 0.95**i for i in range(5)])
