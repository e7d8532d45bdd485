"""A controller killed before and after everything that it writes or does: whoever comes next makes the same of it, and
users see nothing of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kto_ray.config import Config
from kto_ray.store import Store
from tests.support.lives import CHANGES, Killed, Told, World, life
from tests.support.stories import (
    EACH_FIFTH_OR_EACH,
    Story,
    a_challenger_does_harm,
    a_round_is_promoted,
    an_operator_ends_a_training,
    an_operator_goes_back,
    an_operator_goes_back_at_the_gate,
    in_a_row,
    settings,
    the_holdback_goes_back,
)

STORIES: tuple[Story, ...] = (
    a_round_is_promoted,
    a_challenger_does_harm,
    an_operator_goes_back,
    an_operator_goes_back_at_the_gate,
    the_holdback_goes_back,
    an_operator_ends_a_training,
)


class Fate:
    """Ends the process at one of the moments at which it changes something, counted from 1."""

    def __init__(self, at: int | None) -> None:
        self.at = at
        self.moments: list[str] = []

    def __call__(self, moment: str) -> None:
        if moment in CHANGES:
            self.moments.append(moment)
            if len(self.moments) == self.at:
                raise Killed


def lived(
    store: Store, told: Told, config: Config, story: Story, at: int | None = None
) -> tuple[World, list[str], dict[str, Any]]:
    """The world after a story whose first controller is killed at a moment, all such moments, and what is stored."""
    fate = Fate(at)
    with life(store, told, config) as world:
        world.hook = fate
        story(world)
        return world, fate.moments, world.end()


@EACH_FIFTH_OR_EACH
@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
def test_killed_at_any_moment_the_next_controller_comes_to_the_same_end(
    store: Store, tmp_path: Path, story: Story, every: int
) -> None:
    if not store.sqlite and story in (a_round_is_promoted, an_operator_goes_back_at_the_gate, the_holdback_goes_back):
        pytest.skip("the shorter ones are told there")
    config, told = settings(tmp_path), Told(store.url)
    whole, moments, end = lived(store, told, config, story)
    assert whole.controllers == 1 and not whole.cluster.placed
    for at, moment in list(enumerate(moments, start=1))[::every]:
        killed, _, found = lived(store, told, config, story, at)
        when = f"killed at {at} of {len(moments)}, {moment}"
        assert killed.controllers == 2, when
        assert killed.history == whole.history, when
        assert found == end, when
        jobs = killed.cluster.started
        assert in_a_row(jobs) == whole.cluster.started and len(jobs) <= len(whole.cluster.started) + 1, when
        assert not killed.cluster.placed, f"{when}: workers of a training hold what others may not have"


def test_nothing_comes_of_a_gate_that_compared_with_a_former_champion(sqlite_store: Store, tmp_path: Path) -> None:
    told = Told(sqlite_store.url)
    world, _, end = lived(sqlite_store, told, settings(tmp_path), an_operator_goes_back_at_the_gate)
    with_the_former = ["policy@v1" in job for job in world.cluster.started if job[0] == "examine"]
    assert with_the_former == [True, False] and not world.cluster.running, "started anew, and the first cancelled"
    [[candidate]] = [known["candidates"] for known in end["rounds"]]
    assert candidate["tried"]["against"] == "policy@base"
    tests = [(t["champion"], t["challenger"], t["status"]) for t in end["rollouts"] if t["kind"] == "test"]
    assert tests == [("policy@base", "policy@v2", "running")]
