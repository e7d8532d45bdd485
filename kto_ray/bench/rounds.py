"""`kto-ray bench rounds`: rounds in a row on one taste, each adapter from the base or each from the one before.

In a round users ask, judge the present policy's answers, and the next policy is trained: from the base on all feedback
so far (`kto.reference: base`), or from the policy itself on the round's own (`kto.reference: champion`). No gate stands
between, so that a collapse would show. Every policy answers the same fresh questions and the guard suite.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from kto_ray.bench.experiment import (
    Found,
    Tell,
    Work,
    kept,
)
from kto_ray.config import Config
from kto_ray.evaluate.suites import guard_messages
from kto_ray.evaluate.texts import looks_truncated, repeats_itself
from kto_ray.people.offline import (
    Row,
    judgements,
    liked,
    messages,
    questions,
    recipe,
)
from kto_ray.people.tastes import TASTES, Habits, Taste

Reference = Literal["base", "champion"]


def bench_rounds(
    config: Config, taste_name: str, rounds: int, chats: int, fresh: int, out: str, tell: Tell
) -> dict[str, Any]:
    """Figures of every policy by round (0 is the base), for both references; `out` keeps what was trained.

    Args:
        chats: users who ask and judge in a round.
        fresh: questions that every policy is measured on.
    """
    taste = TASTES[taste_name]
    measured = questions(taste, fresh, "fresh")
    report: dict[str, Any] = {"taste": taste_name, "chats": chats, "fresh": fresh}
    for reference in ("base", "champion"):
        lines = _chain(config, taste, reference, rounds, chats, measured, Path(out), tell)
        report[reference] = lines
    return report


def _chain(
    config: Config,
    taste: Taste,
    reference: Reference,
    rounds: int,
    chats: int,
    measured: Sequence[Any],
    out: Path,
    tell: Tell,
) -> list[dict[str, float]]:
    window: list[Row] = []
    lines, start = [], None
    work = Work("none")
    for number in range(rounds + 1):
        asked = questions(taste, chats, f"round {number}")
        adapter = str((out / "learn" / f"{taste.name}-{reference}-{number}").absolute())
        ask = [*messages(measured), *map(list, guard_messages()), *messages(asked)]
        method: Literal["none", "kto"] = "kto" if number else "none"
        work = Work(method, window, ask=ask, start=start, save=adapter if number else None)
        found = kept(out / "learn", recipe(config, number), work, f"{reference}, round {number}", tell)
        lines.append({"round": number, "rows": len(window), **_figures(taste, found, measured)})
        told = judgements(taste, asked, found.answers[-chats:], Habits(), f"judge {number}")
        if reference == "champion":
            window, start = told, adapter if number else None
        else:
            window = [*window, *told]
    return lines


def _figures(taste: Taste, found: Found, measured: Sequence[Any]) -> dict[str, float]:
    """Of the answers to the fresh questions, and how the answers to the guard suite look."""
    n = len(measured)
    guard = found.answers[n : n + len(guard_messages())]
    tokens = max(1, sum(found.answer_tokens[:n]))
    drift = sum(found.answer_policy[:n]) - sum(found.answer_base[:n])
    return {
        "liked": liked(taste, measured, found.answers[:n]),
        "kl_base_nats_per_token": drift / tokens,
        "base_nll_nats_per_token": -sum(found.answer_base[:n]) / tokens,
        "length_tokens": tokens / n,
        "guard_repetition": sum(repeats_itself(text) for text, _ in guard) / len(guard),
        "guard_empty": sum(not text.strip() for text, _ in guard) / len(guard),
        "guard_truncated": sum(looks_truncated(reason, text) for text, reason in guard) / len(guard),
        "train_s": found.train_s,
    }


def table(report: dict[str, Any]) -> Table:
    shown = Table(
        "reference", "round", "rows", "liked", "KL to base, nats/token", "length", "guard: repeat, empty, cut"
    )
    for reference in ("base", "champion"):
        for line in report[reference]:
            guard = "  ".join(f"{line[f'guard_{name}']:.0%}" for name in ("repetition", "empty", "truncated"))
            kl, length = f"{line['kl_base_nats_per_token']:.3f}", f"{line['length_tokens']:.0f}"
            liked_ = f"{line['liked']:.0%}"
            shown.add_row(reference, str(line["round"]), str(line["rows"]), liked_, kl, length, guard)
    return shown
