"""The course of a run as one picture."""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kto_ray.records.training import StepRecord

BLUE, ORANGE = "#0072b2", "#d55e00"  # told apart by colour-blind readers too


def draw(steps: Sequence[StepRecord], title: str) -> bytes:
    """An SVG of loss, KL, rewards by class, margin and gradient norm by step."""
    figure = Figure(figsize=(11, 6), layout="constrained")
    figure.suptitle(title)
    panels = list(figure.subplots(2, 3, sharex=True).flat)
    number = [record.step for record in steps]
    *single, rewards, speed = panels
    titles = {"loss": "loss", "kl": "KL (nats)", "margin": "reward margin", "grad_norm": "gradient norm"}
    for axis, (name, words) in zip(single, titles.items(), strict=True):
        _line(axis, number, [getattr(record, name) for record in steps], BLUE)
        axis.set_title(words)
    _line(rewards, number, [record.reward_desirable for record in steps], BLUE, "desirable")
    _line(rewards, number, [record.reward_undesirable for record in steps], ORANGE, "undesirable")
    rewards.set_title("rewards")
    rewards.legend(frameon=False)
    _line(speed, number, [record.tokens_per_s for record in steps], BLUE)
    speed.set_title("tokens/s")
    for axis in panels[3:]:
        axis.set_xlabel("step")
    out = io.BytesIO()
    figure.savefig(out, format="svg")
    return out.getvalue()


def _line(axis: Axes, x: Sequence[int], y: Sequence[float | None], colour: str, label: str | None = None) -> None:
    """A step without the figure (a class that it held none of, a NaN) leaves a gap."""
    marker = "." if len(x) <= 100 else None  # a gap's neighbours may be single points
    axis.plot(x, [float("nan") if value is None else value for value in y], color=colour, label=label, marker=marker)
    axis.grid(alpha=0.3)
