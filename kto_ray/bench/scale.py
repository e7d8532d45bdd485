"""`kto-ray bench scale`: a tick of the loop, /v1/loop, /metrics and /readyz, as the past grows.

A store is filled with events, pending feedback, ended rounds and a running test's labels and trials in fixed
proportions, and each is measured in process on it, the store's file in the page cache; a tick after one more answer and
judgement of a new user of the test. The slope is that of log time over log events: 0 does
not grow, 1 grows as the past does. The peer is a count of the whole log, which is what a tick and each page would do
without totals.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import linear_regression, median
from typing import Any

import httpx
import sqlalchemy as sa
from rich.table import Table

from kto_ray.config import Config
from kto_ray.loop.step import Loop
from kto_ray.people.filler import fill
from kto_ray.records.completions import Arm, Completion
from kto_ray.records.feedback import Feedback, FeedbackKind
from kto_ray.records.replicas import ReplicaReport
from kto_ray.records.rollouts import RolloutState, RolloutStatus
from kto_ray.records.rounds import Ended, Outcome, Round
from kto_ray.records.trainings import TrainingRun
from kto_ray.records.users import unit_interval
from kto_ray.serve.gateway.api import build
from kto_ray.store import Store, completions, feedback, open_store, replicas, rollouts, tallies, trainings
from kto_ray.store import rounds as stored_rounds
from kto_ray.store.schema import exposures, labels, trials

PAGES = ("/v1/loop", "/metrics", "/readyz")
PENDING_SHARE = 0.02  # of the events: 20,000 of a million
ROUNDS_SHARE = 0.001
TRIALS_SHARE = 0.02
STEPS = 100  # recorded of each round's training
TEST = RolloutState("test", "policy@base", "policy@v1", "salt", 1, 0.5, RolloutStatus.RUNNING, 1.0, 1.0)
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Measured:
    """Medians in milliseconds on a store of this size."""

    events: int
    pending: int
    rounds: int
    test_labels: int  # of a running A/B test, by at most 1,000 users
    test_trials: int  # that are settled there
    tick_ms: float
    pages_ms: Mapping[str, float]
    log_count_ms: float  # the peer


def bench_scale(config: Config, sizes: Sequence[int], repeats: int, tell: Tell) -> dict[str, Any]:
    """Fill and measure; the store is `config`'s, which must be empty."""
    store = open_store(config.database_url)
    with store.read() as tx:
        if tallies.total(tx).completions:
            raise ValueError(f"the store {config.database_url!r} is not empty; name an empty one with --set home=DIR")
    idle = config.model_copy(update={"loop": config.loop.model_copy(update={"enabled": False})})
    loop = Loop(idle, policy=None)  # an idle tick starts nothing
    measured, before = [], 0
    for size in sorted(sizes):
        _grow(store, before, size, tell)
        measured.append(_measure(idle, store, loop, size, repeats))
        tell(f"{size:,} events: tick {measured[-1].tick_ms:.1f} ms")
        before = size
    store.close()
    report = {"sizes": [asdict(one) for one in measured], "slopes": _slopes(measured)}
    return report


def table(report: Mapping[str, Any]) -> Table:
    shown = Table(
        "events",
        "pending",
        "rounds",
        "labels of a test",
        "its trials",
        "tick, ms",
        *(f"{page}, ms" for page in PAGES),
        "count of the log, ms",
    )
    for one in report["sizes"]:
        pages = (f"{one['pages_ms'][page]:.1f}" for page in PAGES)
        size = (f"{one.get(name, 0):,}" for name in ("events", "pending", "rounds", "test_labels", "test_trials"))
        shown.add_row(*size, f"{one['tick_ms']:.1f}", *pages, f"{one['log_count_ms']:.1f}")
    slopes = report["slopes"]
    if slopes:
        shown.add_row("slope", "", "", "", "", *(f"{slopes[name]:.2f}" for name in ("tick", *PAGES, "log count")))
    return shown


def _grow(store: Store, before: int, size: int, tell: Tell) -> None:
    fill(store, before, size, 0, tell)
    waiting = range(int(before * PENDING_SHARE), int(size * PENDING_SHARE))
    now = time.time()
    with store.write() as tx:
        for i in waiting:
            feedback.record(tx, Feedback(f"late-{i:07}", now, FeedbackKind.THUMB, f"unknown-{i}", user="u", value=True))
    step = {"step": 1, "loss": 0.5, "kl": 0.1, "margin": 0.2, "tokens": 900, "seconds": 1.0}
    with store.write() as tx:
        came = tallies.total(tx).came
        for _ in range(int(before * ROUNDS_SHARE), int(size * ROUNDS_SHARE)):
            begun = stored_rounds.insert(tx, 1.0)
            ended = Ended(Outcome.REJECTED, "no evidence of gain", 9.0, "s", None)
            stored_rounds.update(tx, Round(begun.id, ended, 1.0, 9.0, came))
            figures = {**step, "steps": STEPS, "tokens_per_s": 100.0, "train_s": 9.0}
            trainings.put(tx, TrainingRun(begun.run, "s", 1.0, begun.id, None, 9.0, figures, (step,) * STEPS))
        replicas.report(tx, ReplicaReport("r", "node", 1, ()), Config().serve.heartbeat_timeout_s)
        rollouts.put(tx, TEST)
        # Ids are hashes: one in sixteen; of users that say much and little.
        few = labels.c.completion_id.startswith("chatcmpl-1") & (sa.func.length(labels.c.asker) <= len("user-999"))
        tx.execute(labels.update().where(few).values(rollout=TEST.id))
        new = range(int(before * TRIALS_SHARE), int(size * TRIALS_SHARE))
        tx.execute(trials.insert(), [_trial(i) for i in new])
        tx.execute(exposures.delete().where(exposures.c.rollout == TEST.id))
        users = 10 * int(size * TRIALS_SHARE)
        for challenger in (False, True):
            arm = {"rollout": TEST.id, "stage": TEST.stage, "challenger": challenger}
            tx.execute(exposures.insert().values(**arm, users=users, known=users))


def _trial(number: int) -> dict[str, Any]:
    arm = {"rollout": TEST.id, "stage": TEST.stage, "user": f"trial-{number}", "challenger": number % 2 == 0}
    return {
        **arm,
        "known": True,
        "first_at": 1.0,
        "first_seq": 1,
        "place": number + 1,
        "outcome": float(number % 3 == 0),
    }


def _one_more(store: Store, number: str) -> None:
    """An answer of the test to somebody new, and what they say of it."""
    user, now = f"new-{number}", time.time()
    arm = Arm.CHALLENGER if unit_interval(TEST.salt, user) < TEST.weight else Arm.CHAMPION
    name, asked = f"chatcmpl-new-{number}", ({"role": "user", "content": "Hello?"},)
    with store.write() as tx:
        answer = Completion(
            name, now, "policy", "policy@v1", arm, asked, "Hello.", "stop", 1, 1, user=user, rollout=TEST.id
        )
        completions.insert(tx, answer)
        feedback.record(tx, Feedback(f"fb-{name}", now, FeedbackKind.THUMB, name, user, value=True))


def _measure(config: Config, store: Store, loop: Loop, size: int, repeats: int) -> Measured:
    def counted() -> None:
        with store.read() as tx:
            feedback.left_out(tx)

    with store.read() as tx:
        of_test = sa.select(sa.func.count()).select_from(labels).where(labels.c.rollout == TEST.id)
        test_labels = int(tx.execute(of_test).scalar_one())
    return Measured(
        events=size,
        pending=int(size * PENDING_SHARE),
        rounds=int(size * ROUNDS_SHARE),
        test_labels=test_labels,
        test_trials=int(size * TRIALS_SHARE),
        tick_ms=median(_tick_ms(store, loop, f"{size}-{i}") for i in range(repeats)),
        pages_ms=asyncio.run(_pages(config, store, repeats)),
        log_count_ms=_timed(counted, min(repeats, 3)),
    )


async def _pages(config: Config, store: Store, repeats: int) -> dict[str, float]:
    app = build(config, store, _no_engine)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://127.0.0.1") as client:
        found = {}
        for page in PAGES:
            took = []
            for _ in range(repeats):
                began = time.perf_counter()
                answer = await client.get(page)
                took.append(time.perf_counter() - began)
                answer.raise_for_status()
            found[page] = 1000 * median(took)
    return found


def _no_engine(body: Mapping[str, Any], adapter: str, everywhere: bool) -> Any:
    raise AssertionError("nobody chats in this benchmark")


def _tick_ms(store: Store, loop: Loop, name: str) -> float:
    _one_more(store, name)
    return _timed(loop.step, 1)


def _timed(work: Callable[[], Any], repeats: int) -> float:
    took = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    return 1000 * median(took)


def _slopes(measured: Sequence[Measured]) -> dict[str, float]:
    if len(measured) < 2:
        return {}
    size = [math.log(one.events) for one in measured]

    def slope(of: Callable[[Measured], float]) -> float:
        return linear_regression(size, [math.log(of(one)) for one in measured]).slope

    pages = {page: slope(lambda one, page=page: one.pages_ms[page]) for page in PAGES}  # type: ignore[misc]
    return {"tick": slope(lambda one: one.tick_ms), **pages, "log count": slope(lambda one: one.log_count_ms)}
