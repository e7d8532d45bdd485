"""`kto-ray bench loop`: from the thumb that starts a round to the first token of its candidate that passed the gate.

There is no peer but the work itself: what training and evaluation take is what any loop takes; all else is what this
loop adds to it.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any

from rich.table import Table

from kto_ray.app import running
from kto_ray.config import Config
from kto_ray.people.crowd import Crowd
from kto_ray.people.tastes import TASTES, Habits, User, ask, react
from kto_ray.people.turns import Sampling

TASTE = TASTES["short"]
AT_ONCE = 24
POLL_S = 0.1
STALL_S = 1800.0  # without an end of the round
BAR = 1.25  # times training and evaluation, from thumb to token
PARTS = ("begins_s", "snapshot_s", "train_s", "load_s", "gate_s", "token_s")

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Turnaround:
    """A round in seconds, part by part; the parts add up to the whole."""

    begins_s: float  # from the thumb's sending to the round's beginning
    snapshot_s: float  # the stages of the round, with the ticks between them
    train_s: float
    load_s: float
    gate_s: float
    token_s: float  # from the gate's verdict to the candidate's first token
    steps_s: float  # of train_s, the optimizer's steps alone

    @property
    def whole_s(self) -> float:
        return sum(self.parts.values())

    @property
    def parts(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in PARTS}

    @property
    def ratio(self) -> float:
        """Of the whole to training and evaluation."""
        return self.whole_s / (self.train_s + self.gate_s)

    @property
    def ratio_of_steps(self) -> float:
        """Likewise, where of training nothing counts but the steps: the start of its processes is the loop's."""
        return self.whole_s / (self.steps_s + self.gate_s)


def turnaround(thumb_at: float, found: Mapping[str, Any], token_at: float) -> Turnaround:
    """Of a round as the API shows it once it is in its A/B test; times are in seconds since the epoch. Pure."""
    stages = {f"{stage}_s": found["stage_s"][stage] for stage in ("snapshot", "train", "load", "gate")}
    return Turnaround(
        begins_s=found["started_at"] - thumb_at,
        **stages,
        token_s=token_at - found["stage_started_at"],
        steps_s=found["train_metrics"]["train_s"],
    )


def figures(rounds: list[Turnaround]) -> dict[str, Any]:
    """Medians of some rounds, and of their ratios."""
    names = (*PARTS, "steps_s", "whole_s", "ratio", "ratio_of_steps")
    medians = {name: median(getattr(each, name) for each in rounds) for name in names}
    return {**medians, "ratio_bar": BAR, "ratio_met": medians["ratio"] <= BAR}


def bench_loop(config: Config, labels: int, repeats: int, tell: Tell) -> dict[str, Any]:
    """Measure, each time a service of its own on an empty store.

    Args:
        labels: that start the round.
    """
    rounds = []
    for number in range(repeats):
        tell(f"round {number + 1} of {repeats}")
        with tempfile.TemporaryDirectory() as home:
            section = {"home": home, "loop": {**config.loop.model_dump(), "min_labels": labels, "max_rounds": 1}}
            fresh = Config.model_validate({**config.model_dump(), **section})
            with running(fresh, tell) as url:
                rounds.append(asyncio.run(_measured(fresh, url, labels, number, tell)))
        tell(f"{rounds[-1].whole_s:.0f} s, {rounds[-1].ratio:.2f} of training and evaluation")
    more = ("whole_s", "ratio", "ratio_of_steps")
    shown = [asdict(each) | {name: getattr(each, name) for name in more} for each in rounds]
    return {"labels": labels, "dtype": config.model.dtype, "rounds": shown, **figures(rounds)}


async def _measured(config: Config, url: str, labels: int, seed: int, tell: Tell) -> Turnaround:
    habits = Habits(flip=0, edit=0, silent=0)
    async with Crowd(url, config.model.served_name, TASTE, seed, Sampling(), habits) as crowd:
        tell(f"{labels} users ask and judge")
        last = await _all_but_one(crowd, labels)
        thumb_at = time.time()
        await last()
        found = await _gated(crowd, tell)
        token_at = await _first_token(crowd, found["adapter"])
        return turnaround(thumb_at, found, token_at)


async def _all_but_one(crowd: Crowd, labels: int) -> Callable[[], Awaitable[None]]:
    """Everybody asks, and all but one judge; gives that one's thumb."""
    seats = asyncio.Semaphore(AT_ONCE)

    async def asks(user: User) -> Callable[[], Awaitable[None]] | None:
        rng = random.Random(f"{crowd.seed}/{user.id}")
        question = ask(TASTE, user, rng)
        async with seats:
            answer = await crowd.chat(question.prompt, crowd.model, user.id, rng.getrandbits(31))
        if answer is None or not answer.text.strip():
            return None
        reaction = react(TASTE, question, answer.text, rng, crowd.habits)
        return partial(crowd.judge, answer, user, reaction, resend=False)

    thumbs: list[Callable[[], Awaitable[None]]] = []
    while len(thumbs) < labels:
        come = [next(crowd.arrivals) for _ in range(labels - len(thumbs))]
        thumbs += [thumb for thumb in await asyncio.gather(*(asks(user) for user in come)) if thumb is not None]
    for thumb in thumbs[:-1]:
        await thumb()
    page = await crowd.read("/v1/loop")
    if page is None or page["labels"]["new"] != labels - 1:
        raise RuntimeError(f"{labels - 1} thumbs came to {page and page['labels']}, so none of them starts the round")
    return thumbs[-1]


async def _gated(crowd: Crowd, tell: Tell) -> dict[str, Any]:
    """The round once its candidate has passed the gate.

    Raises:
        RuntimeError: it ended before, or does not move.
    """
    until, stage = time.monotonic() + STALL_S, ""
    while time.monotonic() < until:
        page = await crowd.read("/v1/loop")
        found: dict[str, Any] | None = page["rounds"][-1] if page and page["rounds"] else None
        if found is not None and found["stage"] != stage:
            stage = found["stage"]
            tell(f"stage {stage}")
        if found is not None and stage == "rollout":
            return found
        if found is not None and stage == "done":
            raise RuntimeError(f"the round ended {found['outcome']} before its A/B test: {found['reason']}")
        await asyncio.sleep(POLL_S)
    raise RuntimeError(f"the round has been in stage {stage or 'none'} for {STALL_S:.0f} s")


async def _first_token(crowd: Crowd, adapter: str) -> float:
    """When the first token of an answer by the version comes (seconds since the epoch)."""
    stream = await crowd.openai.chat.completions.create(
        model=adapter, messages=[{"role": "user", "content": "Tell me about honey."}], max_tokens=16, stream=True
    )
    async with stream:  # else it would be closed by whoever finds it, in the middle of its next event
        async for chunk in stream:
            if any(choice.delta.content for choice in chunk.choices):
                return time.time()
    raise RuntimeError(f"{adapter} said nothing")


def table(report: Mapping[str, Any]) -> Table:
    title = f"{report['labels']} labels, {report['dtype']}, medians of {len(report['rounds'])}"
    shown = Table("from the thumb to the token", "seconds", "share", title=title)
    words = {
        "begins_s": "until the round begins",
        "snapshot_s": "snapshot",
        "train_s": "training",
        "load_s": "load into the replicas",
        "gate_s": "evaluation",
        "token_s": "until the first token",
    }
    for part, told in words.items():
        shown.add_row(told, f"{report[part]:.1f}", f"{report[part] / report['whole_s']:.0%}")
    shown.add_row("all", f"{report['whole_s']:.1f}", "")
    shown.add_row("of training, the optimizer's steps", f"{report['steps_s']:.1f}", "")
    shown.add_row("all, of training and evaluation", f"{report['ratio']:.2f}", f"bar {report['ratio_bar']:g}")
    shown.add_row("all, of the steps and evaluation", f"{report['ratio_of_steps']:.2f}", "")
    return shown
