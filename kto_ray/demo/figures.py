"""The figures of a run, small enough to keep (figures.json), and several runs side by side, for docs/measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from kto_ray.demo.report import Report

KEPT = ("taste", "thumbs_up_rate", "stage_s", "promoted")
METRICS = ("auc", "auc_low", "auc_high", "kl_base")


def figures(report: Report) -> Report:
    """What of report.json a table of runs shows."""
    this = report["rounds"][0] if report["rounds"] else None
    metrics = this["gate"]["metrics"] if this else {}
    looks = this["rollout"]["history"] if this else []
    return {
        "measured": report["measured"],
        **{name: report[name] for name in KEPT},
        "settings": "the demo's" if report["tuned"] else "the defaults",
        "dtype": report["machine"].get("dtype"),
        "requests": {name: report["requests"][name] for name in ("total", "failed")},
        "feedback": {name: report["feedback"][name] for name in ("sent", "stored")},
        "steps": len(this["train_history"]) if this else 0,
        "gate": {name: metrics.get(name) for name in METRICS},
        "outcome": this["outcome"] if this else None,
        "last_look": looks[-1] if looks else None,
    }


def table(runs: Sequence[Report]) -> Table:
    """A column a run."""
    shown = Table("taste", *(run["taste"] for run in runs))
    for name, of in ROWS.items():
        shown.add_row(name, *(of(run) for run in runs))
    return shown


def _rates(run: Report) -> str:
    rate = run["thumbs_up_rate"]
    before, after = (_share(rate[f"up_{when}"], rate[f"n_{when}"]) for when in ("before", "after"))
    return f"{before}; {after}"


def _share(up: int, n: int) -> str:
    return f"{100 * up / n:.1f}% of {n}" if n else "not asked"


def _difference(run: Report) -> str:
    interval = run["thumbs_up_rate"]["ci95"]
    return f"{interval[0]:+.2f} to {interval[1]:+.2f}" if interval else "-"


def _gate(run: Report) -> str:
    gate = run["gate"]
    if gate["auc"] is None:
        return "-"
    return f"{gate['auc']:.2f} ({gate['auc_low']:.2f} to {gate['auc_high']:.2f}); {gate['kl_base']:.2f}"


def _test(run: Report) -> str:
    look = run["last_look"]
    if look is None:
        return f"none; {run['outcome']}"
    arms = "; ".join(f"{look[f'up_{arm}']:g} of {look[f'n_{arm}']}" for arm in ("champion", "challenger"))
    return f"{arms}; {run['outcome']}"


def _seconds(stage: str) -> Any:
    return lambda run: f"{run['stage_s'].get(stage, 0.0):.0f} s"


ROWS: dict[str, Any] = {
    "settings; precision": lambda run: f"{run['settings']}; {run['dtype']}",
    "thumbs-up before; after, fresh users": _rates,
    "difference, 95% (Newcombe)": _difference,
    "gate: AUC, held out, with its interval; nats a token from the base": _gate,
    "A/B: up of users, champion; challenger": _test,
    "requests failed": lambda run: f"{run['requests']['failed']} of {run['requests']['total']:,}",
    "thumbs and edits sent; stored": lambda run: f"{run['feedback']['sent']}; {run['feedback']['stored']}",
    "start: Ray, vLLM, the model": _seconds("start"),
    "chat until the labels suffice": _seconds("before"),
    "snapshot": _seconds("snapshot"),
    "training steps, beside users who chat": lambda run: f"{run['steps']}, {_seconds('train')(run)}",
    "load; gate": lambda run: f"{_seconds('load')(run)}; {_seconds('gate')(run)}",
    "A/B test": _seconds("rollout"),
    "fresh traffic; examination": lambda run: f"{_seconds('after')(run)}; {_seconds('examine')(run)}",
    "in all": _seconds("total"),
}
