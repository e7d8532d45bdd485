"""Two controllers on one store, of which one stands still at some moment while the other acts, and clocks that jump:
nothing is done by who does not hold the lease, nor on what another has changed since (`tests.support.lives.World` looks
at every transaction), and what comes of it is what one controller would have made."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from kto_ray.config import Config
from kto_ray.loop.lease import LostLease
from kto_ray.store import Store, clock, leases, schema
from tests.support.lives import DAY_S, HOUR_S, TICK_S, Told, World, life
from tests.support.stories import (
    EACH_FIFTH_OR_EACH,
    Story,
    a_challenger_does_harm,
    an_operator_goes_back,
    in_a_row,
    settings,
)


class Meanwhile:
    """At a moment, counted from 1, the first controller stands still, and `other` happens."""

    def __init__(self, world: World, at: int | None, other: Callable[[World], None]) -> None:
        self.world, self.at, self.other = world, at, other
        self.moments: list[str] = []

    def __call__(self, moment: str) -> None:
        world = self.world
        if world.clocks.who != world.everybody[0].who:
            return
        self.moments.append(moment)
        if len(self.moments) == self.at:
            world.elsewhere(lambda: self.other(world))


def another_acts(world: World, jump: Callable[[World], None], lives_on: bool) -> None:
    """To where the loop rests, after a jump of clocks; but nobody can while the first is within a transaction."""
    jump(world)
    within, other = world.told.inside, world.another()
    if within:
        with pytest.raises(sa.exc.OperationalError):
            other.step()
        return
    world.actors.append(other)
    for _ in range(20):
        world.report()
        world.told.changed = False
        try:
            other.step()
        except LostLease:
            raise AssertionError("the lease of the first has run out") from None
        world.clocks.now += TICK_S
        if not world.told.changed and not any(task.of == other.who for task in world.cluster.running):
            break
    if not lives_on:
        world.gone(other)
        world.clocks.now += leases.TTL_S + TICK_S
    world.report()


def stands_still(world: World) -> None:
    """The first, and its clock with it, as those of a virtual machine do."""
    world.clocks.now += leases.TTL_S + TICK_S
    first = world.everybody[0].who
    world.clocks.monotonic_s[first] = world.clocks.monotonic_s.get(first, 0.0) - leases.TTL_S - TICK_S


def store_jumps_back(world: World) -> None:
    world.clocks.store_s -= HOUR_S


def lived(
    store: Store, told: Told, config: Config, story: Story, at: int | None, other: Callable[[World], None]
) -> tuple[World, list[str], dict[str, Any]]:
    with life(store, told, config) as world:
        world.hook = meanwhile = Meanwhile(world, at, other)
        story(world)
        return world, meanwhile.moments, world.end()


CASES = [
    (an_operator_goes_back, stands_still, True),
    (an_operator_goes_back, stands_still, False),
    (an_operator_goes_back, store_jumps_back, True),
    (an_operator_goes_back, store_jumps_back, False),
    (a_challenger_does_harm, stands_still, False),
    (a_challenger_does_harm, store_jumps_back, True),
]


@EACH_FIFTH_OR_EACH
@pytest.mark.parametrize(
    ("story", "jump", "lives_on"),
    CASES,
    ids=[f"{told.__name__}, {jump.__name__}, other {'lives' if on else 'is gone'}" for told, jump, on in CASES],
)
def test_whoever_stands_still_at_any_moment_does_nothing_on_what_is_past(
    store: Store, tmp_path: Path, story: Story, jump: Callable[[World], None], lives_on: bool, every: int
) -> None:
    long = story is a_challenger_does_harm
    if long and not store.sqlite:
        pytest.skip("the short one is told there")
    config, told = settings(tmp_path), Told(store.url)
    whole, moments, end = lived(store, told, config, story, None, lambda _: None)
    for at, moment in list(enumerate(moments, start=1))[::every]:
        if long and moment == "read":  # as soon as all is read comes "begin", which is enough there
            continue
        world, _, found = lived(store, told, config, story, at, lambda w: another_acts(w, jump, lives_on))
        when = f"stood still at {at} of {len(moments)}, {moment}"
        assert world.controllers == 2, when
        assert world.history == whole.history and found == end, when
        assert in_a_row(world.cluster.started) == whole.cluster.started, when
        assert not world.cluster.running and not world.cluster.placed, when


@pytest.mark.parametrize("seed", range(6))
def test_of_two_with_clocks_that_jump_at_any_moment_one_acts_at_a_time(
    sqlite_store: Store, tmp_path: Path, seed: int
) -> None:
    """Clocks of machines that are wrong may end a test early; the story is another then, but one."""
    rng, config, told = random.Random(seed), settings(tmp_path), Told(sqlite_store.url)
    config = config.model_copy(update={"loop": config.loop.model_copy(update={"max_rounds": None})})

    def happens(world: World) -> None:
        clocks = world.clocks
        clocks.store_s += rng.choice([0.0, 0.0, 0.0, leases.TTL_S + 1, -HOUR_S, HOUR_S])
        for actor in world.actors:
            clocks.wall_s[actor.who] = rng.choice([0.0, 0.0, -DAY_S, DAY_S, HOUR_S])
            clocks.monotonic_s[actor.who] = rng.choice([0.0, 0.0, -60.0, 60.0])

    with life(sqlite_store, told, config) as world:
        world.actors.append(world.another())

        def hook(moment: str) -> None:
            if rng.random() < 0.2:
                happens(world)
            others = [actor for actor in world.actors if actor.who != world.clocks.who]
            if world.told.inside or depth or rng.random() > 0.1:
                return
            depth.append(1)
            for _ in range(rng.randrange(1, 4)):
                world.elsewhere(lambda: world.attempt(rng.choice(others)))
            depth.pop()

        depth: list[int] = []
        world.hook = hook
        for number in range(12):
            world.say_something(8, f"before-{number}")
            for _ in range(10):
                world.tick()
            world.chat(12, f"in-{number}")
            for _ in range(5):
                world.tick()
        assert len(world.acts) == 2 and min(world.acts.values()) > 10, "both acted"


def test_who_waits_for_the_one_that_acts_finds_the_lease_renewed(store: Store) -> None:
    """It had expired when both came for it; the second waits at its row, and looks at the clock again."""
    took: list[bool] = []

    def wait() -> None:
        with store.write() as tx:
            took.append(leases.take(tx, leases.CONTROLLER, "second", 2))

    with store.write() as tx:
        assert leases.take(tx, leases.CONTROLLER, "first", 1)
    with store.write() as tx:
        tx.execute(schema.leases.update().values(expires_at=0.0))
    second = threading.Thread(target=wait)
    with store.write() as tx:
        assert leases.keep(tx, leases.CONTROLLER, "first")
        second.start()
        time.sleep(0.2)
        assert not took
    second.join()
    assert took == [False]


def test_who_has_lost_the_lease_keeps_nothing_though_it_has_expired_again(store: Store) -> None:
    with store.write() as tx:
        assert leases.take(tx, leases.CONTROLLER, "first", 1)
        tx.execute(schema.leases.update().values(expires_at=0.0))
        assert leases.keep(tx, leases.CONTROLLER, "first"), "nobody came between"
        tx.execute(schema.leases.update().values(expires_at=0.0))
        assert leases.take(tx, leases.CONTROLLER, "second", 2)
        tx.execute(schema.leases.update().values(expires_at=0.0))
        assert not leases.keep(tx, leases.CONTROLLER, "first")
        assert leases.take(tx, leases.CONTROLLER, "first", 1)


def test_the_stores_clock_goes_on_within_a_transaction(store: Store) -> None:
    """Who waits for a lock must not look at the time at which they began to wait."""
    with store.write() as tx:
        before = tx.execute(sa.select(clock.now(tx))).scalar_one()
        time.sleep(0.02)
        assert tx.execute(sa.select(clock.now(tx))).scalar_one() > before
