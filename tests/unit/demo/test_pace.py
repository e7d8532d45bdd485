"""A demo on a slow machine takes longer and does not fail; one that stands still does."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kto_ray.demo.pace import TRICKLE_SHARE, Patience, Stalled, pause_after, plan


def test_work_that_moves_may_take_many_times_the_patience() -> None:
    async def work() -> str:
        async with Patience(stall_s=0.2) as patience:
            for step in range(12):
                await asyncio.sleep(0.05)
                patience.moved(step)
        return "done"

    assert asyncio.run(work()) == "done"


def test_standing_at_the_same_place_is_no_movement() -> None:
    async def work() -> None:
        async with Patience(stall_s=0.2) as patience:
            while True:
                await asyncio.sleep(0.02)
                patience.moved(("train", 3))

    with pytest.raises(Stalled, match="nothing has moved"):
        asyncio.run(asyncio.wait_for(work(), 5))


@pytest.mark.parametrize("took_s", [0.3, 2.0, 60.0, 600.0])
def test_who_chats_beside_a_training_keeps_the_engine_busy_for_a_bounded_share(took_s: Any) -> None:
    assert took_s / (took_s + pause_after(took_s)) <= TRICKLE_SHARE + 1e-9


def test_the_expected_time_follows_the_speed_and_the_work() -> None:
    small, large = plan(128, 0.3, 8, 150), plan(256, 0.3, 8, 150)
    assert (small.steps, large.steps) == (12, 25)
    assert small.seconds(4.0) < large.seconds(4.0) < large.seconds(1.0)
