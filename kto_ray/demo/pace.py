"""How long the demo takes on this machine, and when it has come to a standstill."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from dataclasses import dataclass

STALL_S = 600.0  # without any movement, after which a phase has failed; however slow a machine is, something moves
MEASURED_ANSWERS = 48  # of the first users, by which the machine's speed is told: two each of those who chat at once
# A user at a time goes on chatting while the round trains on the same cores: this share of the time, on any machine.
TRICKLE_SHARE, TRICKLE_PAUSE_S = 0.1, 10.0  # with at least so long a pause between two of them

# What the round costs, in answers of the first phase (of about 45 tokens, 24 at a time): a training step of 8 rows,
# gate and last examination. Measured in fp32 on AVX2 and in bf16, whose ratios to an answer are about alike.
STEP_ANSWERS, GATE_ANSWERS, EXAMINE_ANSWERS = 22.0, 220.0, 80.0
AB_ANSWERS = 150.0  # that the test usually takes
FIXED_S = 45.0  # Ray Data and Ray Train start their processes; replicas load the adapter
START_S = 60.0  # Ray, vLLM and the model, before the first answer


@dataclass(frozen=True, slots=True)
class Plan:
    """The demo's work: labels that start the round, optimizer steps on them, fresh users at the end."""

    labels: int
    steps: int
    after: int

    def seconds(self, answers_per_s: float) -> float:
        """From the first chat to the verdict, at this rate of the first phase."""
        computing = STEP_ANSWERS * self.steps + GATE_ANSWERS + EXAMINE_ANSWERS
        return (self.labels + AB_ANSWERS + self.after + computing) / answers_per_s + FIXED_S


def plan(labels: int, holdout_share: float, micro_batch: int, after: int) -> Plan:
    """Pure; a label gives about 1.1 rows (an edit gives two)."""
    return Plan(labels, round(1.1 * labels * (1 - holdout_share) / micro_batch), after)


def pause_after(took_s: float) -> float:
    """How long nobody comes after a user who chatted for so long beside a training. Pure."""
    return max(TRICKLE_PAUSE_S, took_s * (1 / TRICKLE_SHARE - 1))


def minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds > 90 else f"{seconds:.0f} s"


class Stalled(RuntimeError):
    """Nothing has moved for STALL_S."""


class Patience:
    """The end of a phase that stands still: use it around the phase's work, and tell it what moves.

    Raises:
        Stalled: `moved` was not told anything new for `stall_s`.
    """

    def __init__(self, stall_s: float = STALL_S) -> None:
        self.stall_s = stall_s
        self.last: Hashable = None

    async def __aenter__(self) -> Patience:
        self.timeout = asyncio.timeout(self.stall_s)
        await self.timeout.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        try:
            await self.timeout.__aexit__(*exc)  # type: ignore[arg-type]
        except TimeoutError:
            raise Stalled(f"nothing has moved for {minutes(self.stall_s)}") from None

    def moved(self, where: Hashable) -> None:
        """Where the work stands; another place than last time is movement."""
        if where != self.last and not self.timeout.expired():
            self.last = where
            self.timeout.reschedule(asyncio.get_running_loop().time() + self.stall_s)
