"""report.html: the run as one self-contained page, drawn from report.json alone."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

import matplotlib

matplotlib.use("svg")  # no display is needed

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from kto_ray.config import Config
from kto_ray.demo.report import Condition, Report

CHAMPION, CHALLENGER, NEUTRAL = "#2563a8", "#d4691e", "#6b7280"  # told apart by the colour-blind too
PHASES = {"before": "before", "round": "training and gate", "ab": "A/B test", "after": "after"}
SMOOTH = 30  # judgements in the running mean
FEW = 9  # judgements before which a mean says nothing
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1f2937; background: #fff; max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem; margin-bottom: .2rem }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem }
p { margin: .3rem 0 }
.verdict { font-weight: 600; padding: .6rem .9rem; border-radius: .4rem; margin: 1rem 0 }
.good { background: #e3f4e8; color: #14532d }
.bad { background: #fde8e6; color: #7f1d1d }
table { border-collapse: collapse; width: 100%; font-size: .92rem }
td, th { text-align: left; vertical-align: top; padding: .35rem .6rem; border-bottom: 1px solid #e5e7eb }
td.n { text-align: right; font-variant-numeric: tabular-nums }
.answers td { width: 37%; white-space: pre-wrap }
.answers td:first-child { width: 26% }
img { width: 100%; height: auto }
.muted { color: #6b7280 }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1rem 0 }
.tile { border: 1px solid #e5e7eb; border-radius: .4rem; padding: .5rem .9rem; min-width: 8rem }
.tile b { display: block; font-size: 1.3rem }
"""


def write(report: Report, met: Sequence[Condition], path: Path) -> Path:
    path.write_text(render(report, met), encoding="utf-8")
    return path


def render(report: Report, met: Sequence[Condition]) -> str:
    """The page as HTML without outside references."""
    ok = all(condition.met for condition in met)
    first = report["rounds"][0] if report["rounds"] else None
    parts = [
        f"<h1>kto-ray demo: taste “{escape(report['taste'])}”</h1>",
        f"<p class=muted>The simulated users’ hidden taste: {escape(report['taste_words'])}. "
        f"Seed {report['seed']}, {report['stage_s']['total']:.0f} s in all.</p>",
        f"<p class=muted>{_machine(report['machine'])}</p>",
        f"<div class='verdict {'good' if ok else 'bad'}'>{_headline(report, ok)}</div>",
        _tiles(report),
        _section("What had to hold", _conditions(met)),
        _section("Thumbs-up rate over time, by arm", _figure(lambda ax: _draw_rates(ax, report))),
    ]
    if first is not None:
        if first["rollout"]["history"]:
            words = "<p class=muted>The interval may be looked at after every thumb: it stays valid.</p>"
            parts.append(
                _section("The A/B test’s confidence sequence", words + _figure(lambda ax: _draw_sequence(ax, first)))
            )
        if first["train_history"]:
            parts.append(_section("Training", _training(first)))
        parts.append(_section("Gate", _gate(first)))
    parts += [
        _section("Where the time went", _figure(lambda ax: _draw_stages(ax, report), height=2.8)),
        _section("Answers before and after", _answers(report["answers"])),
        _section("What is tuned for the demo", _tuned(report["tuned"])),
    ]
    title = f"kto-ray demo: {escape(report['taste'])}"
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width'><title>{title}</title>"
    return (
        f"<!doctype html><html lang=en><head>{head}<style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _headline(report: Report, ok: bool) -> str:
    if not ok:
        return "Not everything that the demo demands holds; see below."
    if report["taste"] == "noise":
        return "The thumbs were random, and nothing was promoted."
    return f"{escape(str(report['champion']))} was trained, gated, A/B-tested and promoted, and users like it better."


def _machine(machine: Report) -> str:
    if "processor" not in machine:
        return "The machine was not asked."
    speed = machine["answers_per_s"]
    words = f"{machine['cores']} cores of {machine['processor']} ({', '.join(machine['instructions'])}), computing in "
    words += f"{machine['dtype']}: {machine['dtype_why']}"
    return escape(words if speed is None else f"{words}; {speed:.1f} answers a second while 24 users chat")


def _tuned(tuned: Report) -> str:
    """What differs from the defaults of `kto-ray serve`, setting by setting."""
    if not tuned:
        return "<p>Nothing: learning and tests are those of <code>kto-ray serve</code>.</p>"
    rows = "".join(
        f"<tr><td>{escape(f'{section}.{name}')}</td><td>{escape(str(value))}</td><td>{escape(str(default))}</td></tr>"
        for section, fields in tuned.items()
        for name, value in fields.items()
        for default in (_default(section, name),)
    )
    words = (
        "<p class=muted>These make one short round suffice; <code>kto-ray demo --defaults</code> learns and decides "
        "as <code>kto-ray serve</code> does.</p>"
    )
    return f"{words}<table><tr><th>setting</th><th>here</th><th>default</th></tr>{rows}</table>"


def _default(section: str, name: str) -> object:
    value = getattr(getattr(Config(), section), name)
    return [f"{stage.name} {stage.weight:g}" for stage in value] if name == "stages" else value


def _tiles(report: Report) -> str:
    rate, requests, feedback = report["thumbs_up_rate"], report["requests"], report["feedback"]
    tiles = (
        (_percent(rate["before"]), "thumbs up before"),
        (_percent(rate["after"]), "thumbs up after"),
        (f"{requests['failed']} of {requests['total']}", "requests failed"),
        (f"{feedback['stored']} of {feedback['sent']}", "judgements stored"),
    )
    return "<div class=tiles>" + "".join(f"<div class=tile><b>{v}</b>{k}</div>" for v, k in tiles) + "</div>"


def _conditions(met: Sequence[Condition]) -> str:
    rows = "".join(f"<tr><td>{'✓' if c.met else '✗'}</td><td>{escape(c.words)}</td></tr>" for c in met)
    return f"<table>{rows}</table>"


def _training(first: Report) -> str:
    history, rewards = first["train_history"], {"reward_desirable": "desirable", "reward_undesirable": "undesirable"}
    words = (
        f"<p class=muted>{len(history)} steps on {first['n_desirable']} desirable and {first['n_undesirable']} "
        "undesirable rows. A reward is beta times the log ratio of candidate and base, a mean over the step’s rows.</p>"
    )
    loss = _figure(lambda ax: _draw_lines(ax, history, {"loss": "loss"}, "KTO loss"), height=2.8)
    return words + loss + _figure(lambda ax: _draw_lines(ax, history, rewards, "reward"), height=2.8)


def _gate(first: Report) -> str:
    gate = first["gate"]
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in gate["reasons"])
    rows = "".join(f"<tr><td>{escape(k)}</td><td class=n>{v:.4g}</td></tr>" for k, v in sorted(gate["metrics"].items()))
    return f"<p>Decision: <b>{escape(str(gate['decision']))}</b></p><ul>{reasons}</ul><table>{rows}</table>"


def _answers(answers: Sequence[Report]) -> str:
    rows = "".join(
        f"<tr><td>{escape(a['question'])}</td><td>{escape(a['before'])}</td><td>{escape(a['after'])}</td></tr>"
        for a in answers
    )
    return f"<table class=answers><tr><th>question</th><th>before</th><th>after</th></tr>{rows}</table>"


def _section(title: str, body: str) -> str:
    return f"<h2>{escape(title)}</h2>{body}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f}%"


def _figure(draw: Callable[[Axes], None], height: float = 3.4) -> str:
    """Draw on fresh axes; the picture as an <img> that carries its own data."""
    figure, axes = plt.subplots(figsize=(9, height), layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    draw(axes)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg")
    plt.close(figure)
    return f"<img alt='' src='data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}'>"


def _draw_rates(axes: Axes, report: Report) -> None:
    """Each judgement as a tick at 0 or 1, and each adapter's running mean of its last judgements."""
    rows = report["judgements"]
    base = report["first_champion"]
    names = list(dict.fromkeys(row["adapter"] for row in rows))
    for name in names:
        mine = [row for row in rows if row["adapter"] == name]
        colour = CHAMPION if name == base else CHALLENGER
        ups = [float(row["up"]) for row in mine]
        means = [
            sum(ups[max(0, i - SMOOTH + 1) : i + 1]) / len(ups[max(0, i - SMOOTH + 1) : i + 1]) for i in range(len(ups))
        ]
        times = [row["at_s"] for row in mine]
        axes.plot(times[FEW:], means[FEW:], color=colour, label=f"{name} (mean of its last {SMOOTH})")
        axes.plot(times, ups, "|", color=colour, alpha=0.35, markersize=5)
    _shade_phases(axes, rows)
    axes.set(ylim=(-0.05, 1.12), xlabel="seconds since the first chat", ylabel="thumbs-up rate")
    if names:
        axes.legend(loc="center left", fontsize=8, framealpha=0.9)


def _shade_phases(axes: Axes, rows: Sequence[Report]) -> None:
    for number, (phase, words) in enumerate(PHASES.items()):
        times = [row["at_s"] for row in rows if row["phase"] == phase]
        if times:
            axes.axvspan(min(times), max(times), color=NEUTRAL, alpha=0.05 + 0.06 * (number % 2), linewidth=0)
            axes.text((min(times) + max(times)) / 2, 1.06, words, ha="center", fontsize=8, color=NEUTRAL)


def _draw_sequence(axes: Axes, first: Report) -> None:
    history = first["rollout"]["history"]
    rows = [row for row in history if row["stage"] == history[-1]["stage"]]  # each stage counts its own users
    n = [row["n_champion"] + row["n_challenger"] for row in rows]
    low, high = [row["low"] for row in rows], [row["high"] for row in rows]
    axes.fill_between(n, low, high, color=CHALLENGER, alpha=0.25, step="post", linewidth=0)
    axes.step(n, low, color=CHALLENGER, where="post", linewidth=1)
    axes.step(n, high, color=CHALLENGER, where="post", linewidth=1)
    axes.axhline(0, color=NEUTRAL, linewidth=1)
    axes.set(ylim=(-1.05, 1.05), xlabel="judged users of both arms", ylabel="challenger − champion")


def _draw_lines(axes: Axes, history: Sequence[Report], keys: dict[str, str], label: str) -> None:
    """One line a key over the steps; a step without that figure is left out."""
    for (key, name), colour in zip(keys.items(), (CHAMPION, CHALLENGER), strict=False):
        points = [(row["step"], row[key]) for row in history if row[key] is not None]
        axes.plot([p[0] for p in points], [p[1] for p in points], ".-", color=colour, label=name)
    axes.set(xlabel="step", ylabel=label)
    if len(keys) > 1:
        axes.legend(fontsize=8)


def _draw_stages(axes: Axes, report: Report) -> None:
    stages = [(name, seconds) for name, seconds in report["stage_s"].items() if name != "total"]
    bars = axes.barh([s[0] for s in stages], [s[1] for s in stages], color=CHAMPION)
    axes.bar_label(bars, fmt="%.0f s", padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set(xlabel="seconds")
