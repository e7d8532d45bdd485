"""What records decide by themselves: a user's hash, a round's way, who holds what."""

from __future__ import annotations

import pytest

from kto_ray.records.replicas import ReplicaReport, held_by_all
from kto_ray.records.rounds import Ended, Loading, OnTrial, Outcome, Round, Sealing, Training
from kto_ray.records.users import user_hash


def test_a_user_is_hashed_with_the_salt() -> None:
    assert user_hash("s", "ann") == user_hash("s", "ann") != user_hash("other", "ann")
    assert user_hash("s", "ann") != user_hash("s", "anne") and "ann" not in user_hash("s", "ann")


def test_a_round_keeps_what_it_has_on_its_way_and_each_stage_its_time() -> None:
    begun = Round(1, Sealing(), 10.0, 10.0)
    training = begun.again("a node was lost").to(Training("s"), 15.0)
    assert (training.attempts, training.failure, training.stage_s) == (0, None, {"snapshot": 5.0})
    loading = training.to(Loading("s", "v1"), 18.0)
    ended = loading.to(OnTrial("s", "v1", "r"), 20.0).ended(Outcome.PROMOTED, "better", 30.0)
    assert ended.state == Ended(Outcome.PROMOTED, "better", 30.0, "s", "v1", "r") and not ended.in_progress
    assert ended.stage_s == {"snapshot": 5.0, "train": 3.0, "load": 2.0, "rollout": 10.0}
    assert begun.ended(Outcome.FAILED, "no", 11.0).state == Ended(Outcome.FAILED, "no", 11.0)


@pytest.mark.parametrize(
    ("held", "common"), [((), ()), ((("a", "b"), ("b",)), ("b",)), ((("a",), ()), ()), ((("a",),), ("a",))]
)
def test_what_every_replica_holds(held: tuple[tuple[str, ...], ...], common: tuple[str, ...]) -> None:
    live = [ReplicaReport(f"r{i}", "node", 1, one, 1.0) for i, one in enumerate(held)]
    assert held_by_all(live) == frozenset(common)
