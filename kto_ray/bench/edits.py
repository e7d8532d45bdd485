"""`kto-ray bench edits`: how far an edit moves the policy, against a thumb.

A constructed set: the base model's own answers that a user with the demo's taste `short` would shorten, and what this
user would have written instead. The same number of events teaches either way: as thumbs, down on every second answer
and up on every other's shorter one, or as edits, where each event says both. How far the policy moved is asked on
held-out questions: by how many nats the odds of the short answer against the long one rose.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from kto_ray.bench.experiment import Tell, Work, kept
from kto_ray.config import Config
from kto_ray.people.offline import (
    Row,
    messages,
    questions,
    recipe,
    row,
)
from kto_ray.people.tastes import TASTES, Ask, edit_short

TASTE = TASTES["short"]
ARMS = ("thumbs", "edits", "half as many edits")

Event = tuple[Ask, str, str]  # the question, the policy's answer, the user's own


def bench_edits(config: Config, events: int, held_out: int, seeds: int, out: str, tell: Tell) -> dict[str, Any]:
    """Train on thumbs, on as many edits, on half as many (so with the rows of the thumbs); `out` keeps what was made.

    Raises:
        ValueError: the base model gave too few answers that a user would shorten.
    """
    folder = Path(out) / "learn"
    found = _events(config, 2 * (events + held_out), folder, tell)
    if len(found) < events + held_out:
        raise ValueError(f"{len(found)} answers could be shortened, {events + held_out} are needed; lower the sizes")
    taught, judged = found[:events], found[events : events + held_out]
    judge = [r for question, long, short in judged for r in (row(question, short, True), row(question, long, False))]
    base = _odds(kept(folder, recipe(config, 0), Work("none", judge=judge), "base", tell).policy)
    moved: dict[str, list[float]] = {arm: [] for arm in ARMS}
    rows = {"thumbs": _thumbs(taught), "edits": _edits(taught), "half as many edits": _edits(taught[: events // 2])}
    for seed in range(1, seeds + 1):
        for arm in ARMS:
            work = Work("kto", rows[arm], judge)
            after = kept(folder, recipe(config, seed), work, f"{arm}, seed {seed}", tell)
            moved[arm].append(float(np.mean(_odds(after.policy) - base)))
    n_events = {"thumbs": events, "edits": events, "half as many edits": events // 2}
    arms = {
        arm: {
            "events": n_events[arm],
            "rows": len(rows[arm]),
            "moved_nats": fmean(moved[arm]),
            "moved_sd_nats": stdev(moved[arm]) if seeds > 1 else None,
            "per_event_nats": fmean(moved[arm]) / n_events[arm],
        }
        for arm in ARMS
    }
    ratios = [edit / thumb for edit, thumb in zip(moved["edits"], moved["thumbs"], strict=True)]
    report = {
        "held_out": held_out,
        "seeds": seeds,
        "arms": arms,
        "edit_over_thumb_ratio": fmean(ratios),
        "edit_over_thumb_by_seed": ratios,
    }
    return report


def _events(config: Config, asked: int, folder: Path, tell: Tell) -> list[Event]:
    """Questions with an answer of the base model that is long and can be shortened."""
    rng = random.Random(0)
    plain = replace(TASTE, styles=("subject_question", "activity_question", "subject_talk"))
    prompts = questions(plain, asked, "edits")
    work = Work("none", ask=messages(prompts))
    answers = kept(folder, recipe(config, 0), work, f"base, {asked} answers", tell).answers
    events = []
    for question, (text, _) in zip(prompts, answers, strict=True):
        short = edit_short(question, text, rng)
        if short is not None and short != text and TASTE.likes is not None and not TASTE.likes(question, text):
            events.append((question, text, short))
    return events


def _thumbs(events: Sequence[Event]) -> list[Row]:
    return [row(q, short, True) if i % 2 else row(q, long, False) for i, (q, long, short) in enumerate(events)]


def _edits(events: Sequence[Event]) -> list[Row]:
    return [r for q, long, short in events for r in (row(q, short, True), row(q, long, False))]


def _odds(logps: Sequence[float]) -> NDArray[np.float64]:
    """(held-out questions,) log p(short answer) - log p(long answer)."""
    of_pairs = np.array(logps).reshape(-1, 2)
    odds: NDArray[np.float64] = of_pairs[:, 0] - of_pairs[:, 1]
    return odds


def table(report: dict[str, Any]) -> Table:
    shown = Table("taught by", "events", "rows", "moved, nats", "a single event, nats", title="held-out questions")
    for arm, f in report["arms"].items():
        spread = "" if f["moved_sd_nats"] is None else f" (sd {f['moved_sd_nats']:.2f})"
        shown.add_row(
            arm, str(f["events"]), str(f["rows"]), f"{f['moved_nats']:.2f}{spread}", f"{f['per_event_nats']:.3f}"
        )
    return shown
