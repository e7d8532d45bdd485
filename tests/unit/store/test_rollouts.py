"""A test's votes: one a user, the first."""

from __future__ import annotations

import random

import pytest

from kto_ray.records.completions import Arm
from kto_ray.records.rollouts import ArmCount
from kto_ray.store import (
    Store,
    completions,
    feedback,
    rollouts,
)
from tests.support.rows import completion, thumb


def test_only_a_users_first_judgement_in_the_stage_counts(store: Store) -> None:
    def judged(name: str, user: str, arm: Arm, value: bool, at: float, created: float = 150.0) -> None:
        completions.insert(tx, completion(name, user=user, arm=arm, rollout="r", created_at=created))
        feedback.record(tx, thumb(f"f-{name}", name, value=value, created_at=at, user=user))

    with store.write() as tx:
        judged("a1", "ann", Arm.CHAMPION, False, 201.0)
        judged("a2", "ann", Arm.CHAMPION, True, 202.0)  # her second: correlated with the first
        judged("b1", "bob", Arm.CHALLENGER, True, 203.0)
        judged("c1", "cid", Arm.CHALLENGER, True, 204.0, created=50.0)  # before the stage
        judged("c2", "cid", Arm.CHALLENGER, False, 205.0)
        judged("d1", "dan", Arm.CHALLENGER, True, 206.0)
        feedback.withdraw(tx, "f-d1", 300.0)
        completions.insert(tx, completion("e1", user=None, rollout="r"))
        feedback.record(tx, thumb("f-e1", "e1"))
    with store.read() as tx:
        assert rollouts.votes(tx, "r", since=100.0) == (ArmCount(1, 0), ArmCount(2, 1))
        assert rollouts.votes(tx, "other", since=0.0) == (ArmCount(0, 0), ArmCount(0, 0))


@pytest.mark.parametrize("seed", range(4))
def test_votes_are_each_users_first_judgement_whatever_they_say(store: Store, seed: int) -> None:
    chance, said = random.Random(seed), []
    with store.write() as tx:
        for i in range(80):
            user, arm = f"u{chance.randrange(9)}", chance.choice((Arm.CHAMPION, Arm.CHALLENGER))
            at, asked_at, up = float(chance.randrange(30)), float(chance.randrange(20)), chance.random() < 0.5
            completions.insert(tx, completion(f"c{i:02}", user=user, arm=arm, rollout="r", created_at=asked_at))
            feedback.record(tx, thumb(f"f{i}", f"c{i:02}", value=up, created_at=at, user=user))
            said.append((at, f"c{i:02}", user, arm, up, asked_at))
    for since in (0.0, 7.0, 15.0):
        first: dict[str, tuple[Arm, bool]] = {}
        for _, _, user, arm, up, asked_at in sorted(said):
            if asked_at >= since:
                first.setdefault(user, (arm, up))
        wanted = tuple(
            ArmCount(sum(a is arm for a, _ in first.values()), sum(a is arm and up for a, up in first.values()))
            for arm in (Arm.CHAMPION, Arm.CHALLENGER)
        )
        with store.read() as tx:
            assert rollouts.votes(tx, "r", since) == wanted
