"""A thumb followed to what it touched, and an adapter followed back, on a real store and real shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kto_ray.config import Config
from kto_ray.provenance.lineage import lineage, trained_on
from kto_ray.records.completions import Arm
from kto_ray.records.lineage import InTest
from kto_ray.records.rollouts import RolloutState, RolloutStatus
from kto_ray.store import Store, adapters, completions, feedback, rollouts, snapshots
from tests.support.provenance import adapter, completion, seal, thumb

CONFIG = Config(salt="s")


@pytest.fixture
def told(store: Store, tmp_path: Path) -> Any:
    """ann's c1 trained v1 and v2, bob's c2 trained v2, cat's c3 was held out of both; dan was answered by v1."""
    first, first_uri = seal(tmp_path, {"train": [("c1", "ann")], "holdout": [("c3", "cat")]}, 1)
    second, second_uri = seal(tmp_path, {"train": [("c1", "ann"), ("c2", "bob")], "holdout": [("c3", "cat")]}, 2)
    v1, v2 = adapter(1, first.id, None), adapter(2, second.id, "policy@v1-aaaaaa")
    state = RolloutState("r1", "policy@base", v1.name, "salt", 1, 0.5, RolloutStatus.PROMOTED, 3.0, 3.0)
    with store.write() as tx:
        for made in (completion("c1", "ann"), completion("c2", "bob"), completion("c3", "cat")):
            completions.insert(tx, made)
        completions.insert(tx, completion("c4", "dan", v1.name, arm=Arm.CHALLENGER, rollout="r1"))
        for event in (thumb("f1", "c1", "ann"), thumb("f3", "c3", "cat"), thumb("f4", "c4", "dan")):
            feedback.record(tx, event)
        snapshots.insert(tx, first, first_uri)
        snapshots.insert(tx, second, second_uri)
        adapters.insert(tx, v1)
        adapters.insert(tx, v2)
        adapters.set_alias(tx, "champion", v1.name, 4.0)
        rollouts.put(tx, state)

    def ask(name: str) -> Any:
        return lineage(store, CONFIG, name)

    return ask


def test_a_completion_leads_to_the_snapshots_and_adapters_that_learnt_from_it(told: Any) -> None:
    found = told("c1")
    assert (found.kind, found.feedback) == ("completion", ("f1",))
    assert [s.rows for s in found.snapshots] == [{"train": 1}, {"train": 1}]
    assert [a.adapter for a in found.adapters] == ["policy@v1-aaaaaa", "policy@v2-aaaaaa"]
    assert found.adapters[0].aliases == ("champion",)
    assert [a.adapter for a in told("c2").adapters] == ["policy@v2-aaaaaa"]


def test_a_held_out_row_trained_nothing(store: Store, told: Any) -> None:
    found = told("c3")
    assert trained_on(store, "c3") == () and len(trained_on(store, "c1")) == 2
    assert [s.rows for s in found.snapshots] == [{"holdout": 1}, {"holdout": 1}]
    assert found.adapters == ()


def test_a_user_leads_to_all_that_they_touched(told: Any) -> None:
    found = told("ann")
    assert (found.kind, found.completions, found.feedback) == ("user", ("c1",), ("f1",))
    assert len(found.snapshots) == len(found.adapters) == 2
    (answered,) = told("dan").answered_by
    assert (answered.adapter, answered.arm) == ("policy@v1-aaaaaa", "challenger")
    assert (answered.rollout, answered.status) == ("r1", "promoted")


def test_an_adapter_leads_back_and_on(told: Any) -> None:
    found = told("policy@v1-aaaaaa")
    assert (found.kind, found.ancestors, found.children) == ("adapter", (), ("policy@v2-aaaaaa",))
    assert found.rollouts == (InTest("r1", "challenger", "promoted"),)
    assert found.completions == 1
    assert told("policy@v2-aaaaaa").ancestors == ("policy@v1-aaaaaa",)


def test_an_unknown_name_is_told(told: Any) -> None:
    with pytest.raises(ValueError, match="'nobody' is no adapter version, no completion and no user"):
        told("nobody")


def test_a_snapshot_that_has_no_index_is_read_itself(store: Store, tmp_path: Path) -> None:
    rows = {"train": [("c1", "ann"), ("c2", "ann")], "holdout": [("c3", "cat")]}
    (old, old_uri), (new, new_uri) = seal(tmp_path, rows, 1, indexed=False), seal(tmp_path, rows, 2)
    with store.write() as tx:
        snapshots.insert(tx, old, old_uri)
        snapshots.insert(tx, new, new_uri)
    for user in ("ann", "cat"):
        found: Any = lineage(store, CONFIG, user)
        first, second = found.snapshots
        assert first.rows == second.rows != {}
