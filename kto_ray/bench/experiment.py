"""Asks for one learning experiment, in a process of its own: train an adapter, score answers, answer prompts.

All methods see the same rows in the same sealed order, from the same initial adapter. Who asks needs neither torch nor
TRL: these are in the process that answers (`inside/experiment.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from kto_ray.bench.own_process import ask
from kto_ray.cluster import cpu_compute
from kto_ray.config import Config
from kto_ray.paths import write_atomic
from kto_ray.records.completions import Message

Tell = Callable[[str], None]

# kto is our exact step; trl_kto TRL's KTOTrainer; concave is KTO with DPO's log sigmoid in place of the value function
# (the ablation of the KTO paper, table 2); sft sees the desirable rows only, dpo and simpo the rows as pairs.
Method = Literal["kto", "trl_kto", "concave", "sft", "dpo", "simpo", "none"]


@dataclass(frozen=True, slots=True)
class Work:
    """What one experiment does. Rows are TRL's unpaired format with "conversation", which pairs them for DPO and SimPO.

    `start` is a folder with the adapter that policy and reference start from, None for the base model; `save` is where
    the adapter goes. Answers to `ask` have at most `max_tokens` tokens, sampled at temperature 0.6 and top_p 0.9.
    """

    method: Method
    train: Sequence[dict[str, Any]] = ()
    judge: Sequence[dict[str, Any]] = ()
    ask: Sequence[Sequence[Message]] = ()
    max_tokens: int = 64
    start: str | None = None
    save: str | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """What came of it. Log-probabilities are sums over an answer's tokens, in nats, in the served precision.

    `policy` are those of the judged rows, in their order. `answers` are (text, finish_reason); `answer_policy` and
    `answer_base` their log-probabilities under the policy and the base, and `answer_tokens` their lengths.
    """

    train_s: float
    losses: list[float]
    grad_norms: list[float]  # of each step, before clipping
    policy: list[float]
    answers: list[tuple[str, str]]
    answer_policy: list[float]
    answer_base: list[float]
    answer_tokens: list[int]


def experiment(config: Config, work: Work) -> Found:
    """Do `work` in a process of its own, with the environment that training has.

    Raises:
        RuntimeError: it failed; its last words are in the message.
    """
    request = {"work": asdict(work), "config": config.model_dump(mode="json")}
    return Found(**ask("kto_ray.bench.inside.experiment", request, cpu_compute(config.train.threads), work.method))


def kept(folder: Path, config: Config, work: Work, words: str, tell: Tell) -> Found:
    """The experiment's result, from its file or made now."""
    sections = config.model_dump(mode="json", include={"model", "kto", "data", "train"})
    decides = {"work": asdict(work), "config": sections}
    key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
    file = folder / f"{key}.json"
    if file.exists():
        return Found(**json.loads(file.read_text()))
    found = experiment(config, work)
    write_atomic(str(file), json.dumps(asdict(found)).encode())
    last = f", last loss {found.losses[-1]:.3f}" if found.losses else ""
    tell(f"{words}: {found.train_s:.0f} s{last}")
    return found
