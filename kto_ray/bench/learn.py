"""`kto-ray bench learn`: does it learn? Our KTO step, TRL's KTO, APO-zero, SFT, DPO and SimPO on the same judgements.

Conversations with one desirable and one undesirable reply are split, by conversation and for good, into a test part, a
validation part and a pool. Hyperparameters are swept on the validation part with one seed; then every method trains on
a draw of the pool with several seeds and is judged on the test part, which nothing was chosen by. A seed decides the
draw, the order and the initial adapter, and is the same for all methods, so that their differences are paired.

Each experiment's result is kept in its own file, named by all that decides it: a run that was cut off goes on.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from kto_ray.bench.experiment import (
    Method,
    Tell,
    Work,
    kept,
)
from kto_ray.config import Config
from kto_ray.config.learning import KtoSection
from kto_ray.feedback.files import read_unpaired

Axes = Sequence[tuple[str, tuple[float, ...]]]
Swept = tuple[dict[str, Any], list[dict[str, Any]]]  # the best point, and all with their AUC
BASE_POINT: dict[str, Any] = {
    "learning_rate": 3e-4,
    "beta": 0.1,
    "rank": 16,
    "alpha": 32,
    "epochs": 1,
    "loss_aversion": 1.0,
}
KTO_SWEEP: Axes = (
    ("learning_rate", (1e-4, 5e-4, 1e-3, 2e-3)),
    ("beta", (0.03, 0.3)),
    ("rank", (8,)),
    ("epochs", (2,)),
)  # one after the other, each from the best so far
PEER_SWEEP: Axes = (("learning_rate", (1e-4, 1e-3)), ("epochs", (2,)))
MARGIN = 0.02  # AUC that a point must gain to be chosen: less is noise here, and the first, cheaper one stands
CHARACTERS_A_TOKEN = 3  # at least: a first, cheap look at what may fit

Pair = tuple[dict[str, Any], dict[str, Any]]  # the desirable and the undesirable reply of one conversation
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Conversations of each part (each has two rows), and the seeds of the table."""

    test: int = 200
    validation: int = 70
    train: int = 120  # drawn from the pool by each seed
    seeds: int = 3


@dataclass(frozen=True, slots=True)
class Variant:
    """A line of the table: a method, its settings, and what it is for a person."""

    name: str
    method: Method
    words: str
    settings: tuple[tuple[str, Any], ...] = ()  # over the swept ones


TABLE = (
    Variant("kto", "kto", "KTO, our step"),
    Variant("trl_kto", "trl_kto", "KTO, TRL's KTOTrainer"),
    Variant("apo_zero", "kto", "APO-zero, our step: KTO without the KL term", (("loss_type", "apo_zero_unpaired"),)),
    Variant("sft", "sft", "SFT on the desirable half (TRL)"),
    Variant("dpo", "dpo", "DPO on the pairs (TRL)"),
    # Its reward is a mean over tokens, so its beta is of another size than DPO's: 2 to 2.5 in its paper
    Variant("simpo", "simpo", "SimPO on the pairs (TRL)", (("beta", 2.0),)),
    Variant("kto_075", "kto", "KTO, loss aversion 0.75", (("loss_aversion", 0.75),)),
    Variant("kto_2", "kto", "KTO, loss aversion 2", (("loss_aversion", 2.0),)),
)
SWEEPS: tuple[tuple[Variant, Axes], ...] = (
    (TABLE[0], KTO_SWEEP),
    *((variant, PEER_SWEEP) for variant in TABLE if variant.method in ("sft", "dpo", "simpo")),
)
ABLATION = (
    Variant("kto", "kto", "KTO"),
    Variant("apo_zero", "kto", "without the KL term (z0 = 0)", (("loss_type", "apo_zero_unpaired"),)),
    Variant("concave", "concave", "concave value function (DPO's log sigmoid)"),
)


@dataclass(frozen=True, slots=True)
class Judged:
    """A training's outcome on one part of the data.

    `ratios` (conversations, 2) are log pi - log base of both replies of each conversation, in nats; `grad_norm` is the
    largest of a step, before clipping.
    """

    ratios: Floats
    grad_norm: float


class Bench:
    """The parts of one data set, and the results kept so far.

    Args:
        config: model, train and data.max_length are used; kto gives the micro-batch.
        data: a file in TRL's unpaired preference format whose rows name their conversation.
        jobs: experiments that run at a time.
        out: where results are kept.

    Raises:
        ValueError: too few conversations have both replies and fit data.max_length.
    """

    def __init__(self, config: Config, data: str, sizes: Sizes, jobs: int, out: str, tell: Tell) -> None:
        self.config, self.sizes, self.tell, self.kept = config, sizes, tell, Path(out) / "learn"
        self.slots = BoundedSemaphore(jobs)
        pairs = conversations(data, config.data.max_length, config)
        needed = sizes.test + sizes.validation + sizes.train
        if len(pairs) < needed:
            raise ValueError(
                f"{data} gives {len(pairs)} conversations with both replies within data.max_length "
                f"{config.data.max_length}, and this needs {needed}; raise data.max_length or lower the sizes"
            )
        self.test, rest = pairs[: sizes.test], pairs[sizes.test :]
        self.validation, self.pool = rest[: sizes.validation], rest[sizes.validation :]

    def judged(self, variant: Variant, point: dict[str, Any], seed: int, part: str) -> Judged:
        """Train with one seed and look at part `test` or `validation`."""
        settings = {**point, **dict(variant.settings)}
        kto = KtoSection.model_validate({**self.config.kto.model_dump(), **settings})
        data = self.config.data.model_copy(update={"seed": seed})
        config = self.config.model_copy(update={"kto": kto, "data": data})
        drawn = random.Random(seed).sample(self.pool, self.sizes.train)
        judged = self.test if part == "test" else self.validation
        work = Work(variant.method, [row for pair in drawn for row in pair], [row for pair in judged for row in pair])
        words = f"{variant.name}, seed {seed}, {part}, {_short(point)}"
        with self.slots:
            found = kept(self.kept, config, work, words, self.tell)
            base = kept(self.kept, self.config, Work("none", judge=work.judge), f"base, {part}", self.tell)
        moved: Floats = np.array(found.policy) - np.array(base.policy)
        return Judged(moved.reshape(-1, 2), max(found.grad_norms))

    def sweep(self, variant: Variant, axes: Axes) -> Swept:
        """The best point by AUC on the validation part, one axis after another, and all that was tried."""
        best, tried = {**BASE_POINT, **dict(variant.settings)}, []
        score = self._validation_auc(variant, best)
        tried.append({**best, "auc": score})
        for axis, values in axes:
            points = [{**best, axis: value} | ({"alpha": 2 * value} if axis == "rank" else {}) for value in values]
            for point in points:
                found = self._validation_auc(variant, point)
                tried.append({**point, "auc": found})
                if found > score + MARGIN:
                    score, best = found, point
        self.tell(f"{variant.method}: chosen on the validation part: {_short(best)}")
        return best, tried

    def _validation_auc(self, variant: Variant, point: dict[str, Any]) -> float:
        return _auc(self.judged(variant, point, 0, "validation").ratios)


def bench_learn(
    config: Config, data: str, sizes: Sizes, ablation: bool, jobs: int, out: str, tell: Tell
) -> dict[str, Any]:
    """Sweep, train and judge, `jobs` at a time; `out` keeps what was made, so that a run goes on after a cut-off."""
    bench = Bench(config, data, sizes, jobs, out, tell)
    variants = ABLATION if ablation else TABLE
    with ThreadPoolExecutor(len(SWEEPS) + sizes.seeds * len(variants)) as pool:
        swept = {v.method: pool.submit(bench.sweep, v, axes) for v, axes in SWEEPS if v.method == "kto" or not ablation}
        points = {method: found.result()[0] for method, found in swept.items()}
        # seed by seed, so that a run that is cut off leaves a fair, smaller table
        cells = [(v, points.get(v.method, points["kto"]), seed) for seed in range(1, sizes.seeds + 1) for v in variants]
        found = list(pool.map(lambda cell: bench.judged(cell[0], cell[1], cell[2], "test"), cells))
    by_variant: dict[str, list[Judged]] = {variant.name: [] for variant in variants}
    for (variant, _, _), judged in zip(cells, found, strict=True):
        by_variant[variant.name].append(judged)
    report = {
        "conversations": {**asdict(sizes), "pool": len(bench.pool)},
        "max_length": config.data.max_length,
        "micro_batch": config.kto.micro_batch,
        "points": points,
        "sweep": {method: found.result()[1] for method, found in swept.items()},
        "lines": {v.name: {"words": v.words, **_line(by_variant[v.name], by_variant["kto"])} for v in variants},
        "versions": {name: version(name) for name in ("torch", "transformers", "trl", "peft")},
    }
    return report


def conversations(data: str, max_length: int, config: Config) -> list[Pair]:
    """Conversations that have both replies and fit whole, in an order that the seed does not change."""
    from kto_ray.data.tokens import encode, load_tokenizer
    from kto_ray.model import resolve_model

    rows: dict[str, dict[bool, dict[str, Any]]] = {}
    for completion, thumb in read_unpaired(data):
        row = {
            "prompt": [dict(m) for m in completion.messages],
            "completion": [{"role": "assistant", "content": completion.text}],
            "label": bool(thumb.value),
            "conversation": completion.user or completion.id,
        }
        rows.setdefault(str(row["conversation"]), {})[bool(thumb.value)] = row
    tokenizer = load_tokenizer(resolve_model(config.model), config.model.revision)

    def fits(row: dict[str, Any]) -> bool:
        answer = row["completion"][0]["content"]
        if sum(len(m["content"]) for m in row["prompt"]) + len(answer) > 2 * CHARACTERS_A_TOKEN * max_length:
            return False
        ids = encode(tokenizer, row["prompt"], answer)
        return ids is not None and len(ids[0]) + len(ids[1]) <= max_length

    whole = [(sides[True], sides[False]) for sides in rows.values() if len(sides) == 2]
    fitting = [pair for pair in whole if all(map(fits, pair))]
    return sorted(fitting, key=lambda pair: hashlib.sha256(pair[0]["conversation"].encode()).digest())


# ---- figures


def _accuracy(ratios: Floats) -> float:
    """The share of conversations whose desirable reply has the higher reward; a tie counts one half."""
    gap = ratios[:, 0] - ratios[:, 1]
    return float(np.mean((gap > 0) + 0.5 * (gap == 0)))


def _auc(ratios: Floats) -> float:
    from kto_ray.stats.ranking import auc

    return auc(ratios[:, 0], ratios[:, 1])


def _line(judged: Sequence[Judged], ours: Sequence[Judged]) -> dict[str, Any]:
    figures = _figures(*(np.stack([seed.ratios for seed in seeds]) for seeds in (judged, ours)))
    return {**figures, "grad_norm_max": max(seed.grad_norm for seed in judged)}


def _figures(ratios: Floats, ours: Floats) -> dict[str, Any]:
    """Means over seeds, with 95% percentile intervals from resampling conversations and seeds alike, and the difference
    to our KTO on the same resamples. `ratios` and `ours` are (seeds, conversations, 2)."""
    random_ = np.random.default_rng(0)
    draws: dict[str, list[float]] = {"accuracy": [], "auc": [], "accuracy_over_kto": [], "auc_over_kto": []}
    for _ in range(1000):
        seeds = random_.integers(len(ratios), size=len(ratios))
        rows = random_.integers(ratios.shape[1], size=ratios.shape[1])
        for name, figure in (("accuracy", _accuracy), ("auc", _auc)):
            mine = float(np.mean([figure(ratios[s][rows]) for s in seeds]))
            draws[name].append(mine)
            draws[f"{name}_over_kto"].append(mine - float(np.mean([figure(ours[s][rows]) for s in seeds])))
    point = {"accuracy": _mean(_accuracy, ratios), "auc": _mean(_auc, ratios)}
    point |= {f"{name}_over_kto": point[name] - _mean(f, ours) for name, f in (("accuracy", _accuracy), ("auc", _auc))}
    told: dict[str, Any] = {}
    for name, value in point.items():
        low, high = np.percentile(draws[name], (2.5, 97.5))
        told |= {name: value, f"{name}_low": float(low), f"{name}_high": float(high)}
    told["auc_by_seed"] = [_auc(one) for one in ratios]
    told["moved_nats"] = float(np.abs(ratios).mean())  # how far an answer's log-probability was moved
    return told


def _mean(figure: Callable[[Floats], float], ratios: Floats) -> float:
    return float(np.mean([figure(one) for one in ratios]))


def _short(point: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in point.items() if name != "alpha")


def table(report: dict[str, Any]) -> Table:
    """Accuracy and AUC of each line with their intervals, and the difference to our KTO."""
    shown = Table("method", "pair accuracy (95%)", "AUC (95%)", "AUC over KTO (95%)", title="held-out conversations")
    for line in report["lines"].values():
        cells = [
            f"{line[name]:{sign}.3f} ({line[f'{name}_low']:{sign}.3f} to {line[f'{name}_high']:{sign}.3f})"
            for name, sign in (("accuracy", ""), ("auc", ""), ("auc_over_kto", "+"))
        ]
        shown.add_row(line["words"], *cells)
    return shown
