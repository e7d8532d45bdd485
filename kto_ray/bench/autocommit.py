"""Rows a second at a store, of answers and a thumb on each: by callers of the one writer, and by autocommit."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import median

from kto_ray.bench.inside.ingest import SAID
from kto_ray.records.completions import Arm, Completion
from kto_ray.records.feedback import Feedback, FeedbackKind
from kto_ray.store import Store, completions, feedback, open_store, schema
from kto_ray.store.mapping import columns_of, feedback_columns
from kto_ray.store.writer import Writer

CALLERS = 256  # who wait for the writer at once
THREADS = (1, 16)  # of autocommit; the better counts
ASKED = "Tell me in a few words why the sky is blue and not violet, as you would tell a child of ten years."
NUMBERS = itertools.count(10**9)  # above those of the store, which takes them from a sequence
Pair = tuple[Completion, Feedback]


def at_the_store(fresh: Callable[[], str], n: int, run: str) -> dict[str, float]:
    store = open_store(fresh())
    try:
        grouped = asyncio.run(_grouped(store, pairs_of(n, f"{run}-w")))
        ungrouped = _threaded(1, pairs_of(n // 8, f"{run}-u"), lambda pair: _alone(store, pair))
        plain = max(
            _threaded(threads, pairs_of(n // 4, f"{run}-p{threads}"), lambda pair: _plain(store, pair))
            for threads in THREADS
        )
    finally:
        store.close()
    return {"writer_per_s": grouped, "ungrouped_per_s": ungrouped, "autocommit_per_s": plain}


def pairs_of(n: int, run: str) -> list[Pair]:
    """Answers, and a thumb on each by who asked."""
    answer = Completion(
        id="",
        created_at=time.time(),
        model="policy",
        adapter="policy@base",
        arm=Arm.CHAMPION,
        messages=({"role": "user", "content": ASKED},),
        text=SAID,
        finish_reason="stop",
        prompt_tokens=24,
        completion_tokens=60,
        params={"temperature": 0.7, "max_tokens": 128},
        prompt_ids=bytes(4 * 24),
        answer_ids=bytes(4 * 60),
    )
    thumb = Feedback("", time.time(), FeedbackKind.THUMB, None, value=True, body_hash="0" * 64)
    return [
        (
            replace(answer, id=f"c-{run}-{i}", user=f"u{i % 997}"),
            replace(
                thumb, id=f"f-{run}-{i}", completion_id=f"c-{run}-{i}", user=f"u{i % 997}", idempotency_key=f"{run}-{i}"
            ),
        )
        for i in range(n)
    ]


async def _grouped(store: Store, pairs: list[Pair]) -> float:
    """Rows a second, by callers who each wait until their answer is durable, and then until their thumb is."""
    writer, rest = Writer(store), iter(pairs)

    async def caller() -> None:
        for answer, thumb in rest:
            await asyncio.wrap_future(writer.keep(answer))
            await asyncio.wrap_future(writer.record(thumb))

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    took = time.perf_counter() - began
    writer.close()
    return 2 * len(pairs) / took


def _threaded(threads: int, pairs: list[Pair], write: Callable[[Pair], None]) -> float:
    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(write, pairs):
            pass
    return 2 * len(pairs) / (time.perf_counter() - began)


def _alone(store: Store, pair: Pair) -> None:
    with store.write() as tx:
        completions.insert(tx, pair[0])
    with store.write() as tx:
        feedback.record(tx, pair[1])


def _plain(store: Store, pair: Pair) -> None:
    """What an application would do that logs rows and no more."""
    number = next(NUMBERS)
    answer = {**columns_of(pair[0]), "seq": number}
    thumb = {**feedback_columns(pair[1], pair[0].id), "seq": number}
    for insert in (schema.completions.insert().values(answer), schema.feedback.insert().values(thumb)):
        with store.engine.connect() as connection, connection.execution_options(kto_write=True).begin():
            connection.execute(insert)


def fdatasync_ms(folder: Path) -> float:
    """Of one small write: what a commit waits for."""
    took = []
    with (folder / "sync").open("wb", buffering=0) as file:
        for _ in range(200):
            began = time.perf_counter()
            file.write(b"0" * 4096)
            os.fdatasync(file.fileno())
            took.append((time.perf_counter() - began) * 1000)
    return median(took)
