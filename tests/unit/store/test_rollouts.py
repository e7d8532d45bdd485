"""A test's votes: one a user, the first."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from kto_ray.records.completions import Arm
from kto_ray.records.rollouts import ArmCount, RolloutState, RolloutStatus
from kto_ray.store import Store, completions, feedback, rollouts
from tests.support.rows import completion, thumb

STAGE = RolloutState("r", "policy@base", "policy@v1-aaaaaa", "salt", 0, 0.5, RolloutStatus.RUNNING, 1.0, 1.0)


def test_only_a_users_first_judgement_in_the_stage_counts(store: Store) -> None:
    def asked(name: str, user: str | None, arm: Arm = Arm.CHALLENGER) -> None:
        completions.insert(tx, completion(name, user=user, arm=arm, rollout="r"))

    def judged(name: str, user: str, value: bool) -> None:
        feedback.record(tx, thumb(f"f-{name}", name, value=value, user=user))

    with store.write() as tx:
        rollouts.put(tx, STAGE)
        asked("c1", "cid")
        rollouts.put(tx, replace(STAGE, stage=1, stage_started_at=2.0))
        rollouts.put(tx, replace(STAGE, stage=1, stage_started_at=2.0, status=RolloutStatus.PAUSED))
        for name, user, arm in (("a1", "ann", Arm.CHAMPION), ("a2", "ann", Arm.CHAMPION), ("b1", "bob", None)):
            asked(name, user, arm or Arm.CHALLENGER)
        asked("c2", "cid")
        asked("d1", "dan")
        asked("e1", None)
        judged("a2", "ann", False)
        judged("a1", "ann", True)  # her second: correlated with the first
        judged("b1", "bob", True)
        judged("c1", "cid", True)  # asked before the stage
        judged("c2", "cid", False)
        judged("d1", "dan", True)
        feedback.withdraw(tx, "f-d1", 300.0)
        feedback.record(tx, thumb("f-e1", "e1"))
    with store.read() as tx:
        assert rollouts.votes(tx, "r") == (ArmCount(1, 0), ArmCount(2, 1))
        assert rollouts.votes(tx, "other") == (ArmCount(0, 0), ArmCount(0, 0))


@pytest.mark.parametrize("seed", range(4))
def test_votes_are_each_users_first_judgement_whatever_they_say(store: Store, seed: int) -> None:
    chance = random.Random(seed)
    first: dict[str, tuple[Arm, bool]] = {}
    with store.write() as tx:
        rollouts.put(tx, STAGE)
        asked = [
            (f"c{i:02}", f"u{chance.randrange(9)}", chance.choice((Arm.CHAMPION, Arm.CHALLENGER))) for i in range(80)
        ]
        for i, (name, user, arm) in enumerate(asked):
            if i == 40:
                rollouts.put(tx, replace(STAGE, stage=1, stage_started_at=2.0))
            completions.insert(tx, completion(name, user=user, arm=arm, rollout="r"))
        for number in chance.sample(range(80), 80):
            (name, user, arm), up = asked[number], chance.random() < 0.5
            feedback.record(tx, thumb(f"f{number}", name, value=up, user=user))
            if number >= 40:
                first.setdefault(user, (arm, up))
    wanted = tuple(
        ArmCount(sum(a is arm for a, _ in first.values()), sum(a is arm and up for a, up in first.values()))
        for arm in (Arm.CHAMPION, Arm.CHALLENGER)
    )
    with store.read() as tx:
        assert rollouts.votes(tx, "r") == wanted
