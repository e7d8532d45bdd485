"""What happens around a loop, for tests that tell it again and again. A story ends where the loop rests."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from kto_ray.config import Config
from kto_ray.records.requests import Act
from kto_ray.rollout import holdback
from kto_ray.store import rollouts
from tests.support.lives import DAY_S, HOUR_S, RULES, World

Story = Callable[[World], None]
# Of the moments of a story: each takes minutes, hence `make slow`
EACH_FIFTH_OR_EACH = pytest.mark.parametrize(
    "every", [5, pytest.param(1, marks=pytest.mark.slow)], ids=["each fifth", "each"]
)


def a_round_is_promoted(world: World) -> None:
    """Through canary and A/B; then its holdback's first day ends."""
    world.say_something(8)
    world.settle()
    world.chat(24, "canary")
    world.settle()
    world.chat(64, "ab")
    world.settle()
    world.clocks.now += 2 * HOUR_S
    world.settle()
    world.chat(24, "after")
    world.settle()
    world.clocks.now += DAY_S
    world.settle()


def a_challenger_does_harm(world: World) -> None:
    world.pleases = "policy@base"
    world.say_something(8)
    world.settle()
    world.chat(40, "canary")
    world.settle()


def an_operator_goes_back(world: World) -> None:
    """From a champion with a holdback; asked twice, as whoever saw no answer would."""
    _with_a_champion(world)
    world.ask(Act.ROLLBACK, "policy@v1")
    world.settle()
    world.ask(Act.ROLLBACK, "policy@v1")
    world.settle()


def an_operator_goes_back_at_the_gate(world: World) -> None:
    """While the candidate is compared with the champion that goes: it is compared with the one that comes back."""
    _with_a_champion(world)
    world.say_something(8)
    while "examine" not in [started[0] for started in world.cluster.started]:
        world.tick()
    world.ask(Act.ROLLBACK, "policy@v1")
    world.settle()


def the_holdback_goes_back(world: World) -> None:
    """By itself, in the midst of the next test."""
    _with_a_champion(world)
    world.pleases = "policy@base"
    world.say_something(8)
    world.settle()
    world.chat(80, "watched")
    world.settle()
    world.clocks.now += DAY_S
    world.settle()


def an_operator_ends_a_training(world: World) -> None:
    world.say_something(8)
    while ("learn", "round-1") not in [started[:2] for started in world.cluster.started]:
        world.tick()
    world.ask(Act.END, "1")
    world.settle()


def _with_a_champion(world: World) -> None:
    world.promoted("policy@v1")
    rules, now = world.config.rollout, world.clocks.now
    with world.store.write() as tx:
        begun = holdback.start(rules, "policy@v1", "policy@base", "holdback-0", "salt", now)
        assert begun is not None
        rollouts.put(tx, begun)
    world.settle()


def settings(home: Path) -> Config:
    """One round."""
    section = {"min_labels": 8, "max_rounds": 1}
    return Config.model_validate({"home": str(home), "loop": section, "rollout": RULES})


def in_a_row(started: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Jobs, of which one that was started again with the same arguments counts once."""
    return [job for job, _ in groupby(started)]
