"""`kto-ray bench train`: real tokens a second of our KTO step and of TRL's KTOTrainer, in one run.

Same rows in the same sealed order, same model, LoRA, precision, batch, threads and environment; every measurement is a
process of its own, which warms up on its longest micro-batch; the variants take turns, and the medians count. TRL runs
with its defaults (gradient checkpointing, the reference computed in every step) and with its best exact settings (no
checkpointing, the reference precomputed). A first epoch counts the reference once, for ours and for TRL's best alike.
The floor of a step is 4N FLOP a token, at the rate that large matrix products reach in the same processes.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from statistics import median
from typing import Any, Literal

from rich.table import Table

from kto_ray.bench.own_process import ask
from kto_ray.cluster import cpu_compute
from kto_ray.config import Config
from kto_ray.feedback.files import read_unpaired

Variant = Literal["exact", "trl_best", "trl_default"]
VARIANTS: tuple[Variant, ...] = ("exact", "trl_best", "trl_default")
BARS = {"trl_default": 2.5, "trl_best": 1.5}
LONG_ANSWER = 600  # characters at least of an answer of the long-completion set


@dataclass(frozen=True, slots=True)
class Work:
    """What one process measures: conversations in TRL's unpaired format, in training order."""

    rows: list[dict[str, Any]]
    variant: Variant


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds of each step after the first, without the reference; real tokens of those steps; the reference's seconds
    for them (0 where each step computes it anyway); the frozen weights, and FLOP a second of large matrix products."""

    step_s: list[float]
    tokens: int
    reference_s: float
    loss_last: float
    parameters: int
    matmul_flops: float


def bench_train(config: Config, data: str, steps: int, repeats: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Measure.

    Args:
        config: model, kto, data.max_length and train.threads are used.
        data: a file in TRL's unpaired preference format.
        steps: measured steps of each process; one more warms up.
        repeats: processes of each variant and set.

    Raises:
        ValueError: the file is not readable, or holds too few rows.
        RuntimeError: a measuring process failed; its last words are in the message.
    """
    n = config.kto.micro_batch * (steps + 1)
    sets = {"human": conversations(data, n, config.data.seed), "long": long_answers(data, n, config.data.seed)}
    found: dict[str, dict[str, list[Measured]]] = {name: {v: [] for v in VARIANTS} for name in sets}
    for repeat in range(repeats):
        for name, rows in sets.items():
            for variant in VARIANTS:
                measured = _in_process(config, Work(rows, variant))
                found[name][variant].append(measured)
                tell(
                    f"{name}, {variant}, {repeat + 1}/{repeats}: {measured.tokens / sum(measured.step_s):.0f} tokens/s "
                    f"in steps, {_first_epoch(measured):.0f} with the reference"
                )
    report = {
        "rows": n,
        "micro_batch": config.kto.micro_batch,
        "max_length": config.data.max_length,
        "threads": config.train.threads,
        "dtype": config.train.dtype,
        "repeats": repeats,
        "sets": {name: _figures(by_variant) for name, by_variant in found.items()},
        "bars": {f"vs_{peer}_ratio": bar for peer, bar in BARS.items()},
        "versions": {name: version(name) for name in ("torch", "transformers", "trl", "peft")},
        "raw": {name: {v: [asdict(m) for m in ms] for v, ms in by.items()} for name, by in found.items()},
    }
    return report


def _first_epoch(measured: Measured) -> float:
    return measured.tokens / (sum(measured.step_s) + measured.reference_s)


def _figures(found: dict[str, list[Measured]]) -> dict[str, float]:
    """Medians over the repeats; ratios of ours to the peers, of steps alone and with the reference counted once."""
    steps = {v: median(m.tokens / sum(m.step_s) for m in ms) for v, ms in found.items()}
    first = {v: median(_first_epoch(m) for m in ms) for v, ms in found.items()}
    figures = {f"{v}_tokens_per_s": rate for v, rate in steps.items()}
    figures |= {f"{v}_first_epoch_tokens_per_s": rate for v, rate in first.items()}
    # Through frozen weights a token's answer costs 2N forward and 2N backward, whatever else a step does.
    peak = max(m.matmul_flops for ms in found.values() for m in ms)
    figures |= {f"{v}_flop_floor_share": 4 * found[v][0].parameters * rate / peak for v, rate in steps.items()}
    for peer in BARS:
        figures[f"vs_{peer}_ratio"] = first["exact"] / first[peer]
        figures[f"vs_{peer}_later_epochs_ratio"] = steps["exact"] / steps[peer]
    return figures


def conversations(data: str, n: int, seed: int) -> list[dict[str, Any]]:
    """`n` rows of the file, as they come after a shuffle."""
    rows = [
        {
            "prompt": [dict(m) for m in completion.messages],
            "completion": [{"role": "assistant", "content": completion.text}],
            "label": bool(event.value),
        }
        for completion, event in read_unpaired(data)
    ]
    random.Random(seed).shuffle(rows)
    return _enough(rows, n, data)


def long_answers(data: str, n: int, seed: int) -> list[dict[str, Any]]:
    """Short prompts with long answers: a first question, answered by answers of the file run together."""
    rows = conversations(data, 0, seed)
    texts = iter([row["completion"][0]["content"] for row in rows])
    made = []
    for row in rows:
        answer = ""
        while len(answer) < LONG_ANSWER and (more := next(texts, None)) is not None:
            answer = f"{answer}\n\n{more}".strip()
        if len(answer) >= LONG_ANSWER:
            made.append({**row, "prompt": row["prompt"][:1], "completion": [{"role": "assistant", "content": answer}]})
    return _enough(made, n, data)


def _enough(rows: list[dict[str, Any]], n: int, data: str) -> list[dict[str, Any]]:
    if len(rows) < n:
        raise ValueError(f"{data} gives {len(rows)} rows, and the benchmark needs {n}; take fewer steps or more data")
    return rows[:n] if n else rows


def _in_process(config: Config, work: Work) -> Measured:
    request = {"work": asdict(work), "config": config.model_dump(mode="json")}
    environment = cpu_compute(config.train.threads)
    return Measured(**ask("kto_ray.bench.inside.train", request, environment, work.variant))


def table(report: dict[str, Any]) -> Table:
    """The rates of a first epoch, with the ratio of ours to each."""
    sets = report["sets"]
    title = f"first epoch, the reference counted once; later epochs; median of {report['repeats']} processes"
    shown = Table("tokens/s (ours over it)", *sets, title=title)
    for variant in VARIANTS:
        cells = []
        for figures in sets.values():
            told = []
            for epoch, ratio_of in (("first_epoch_", ""), ("", "later_epochs_")):
                ratio = figures.get(f"vs_{variant}_{ratio_of}ratio")
                rate = f"{figures[f'{variant}_{epoch}tokens_per_s']:.0f}"
                told.append(rate if ratio is None else f"{rate} ({ratio:.2f}, bar {BARS[variant]:g})")
            cells.append(f"{'; '.join(told)}; {figures[f'{variant}_flop_floor_share']:.0%} of the floor")
        shown.add_row(variant, *cells)
    return shown
