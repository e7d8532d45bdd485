"""Benchmarks; each measures its peer in the same run."""

from __future__ import annotations

from typing import Annotated

import typer

from kto_ray.cli.common import AsJson, ConfigFile, Overrides, err, out, settings_of
from kto_ray.config import Config
from kto_ray.processor import precision

app = typer.Typer(no_args_is_help=True, help="Measure speed and learning, the peer in the same run.")

# Long enough for nearly all human rows.
BENCH_TRAIN = ("data.max_length=384",)
# Short conversations: many steps in little time.
BENCH_LEARN = ("data.max_length=112", "train.threads=1")

Data = Annotated[str, typer.Option(help="A file in TRL's unpaired preference format.")]
OutDir = Annotated[str, typer.Option("--out", help="Where results go.")]


def bench_settings(path: str | None, overrides: list[str] | None) -> Config:
    """A benchmark's processes are many and all compute on this machine: they take its precision from here."""
    settings = settings_of(path, overrides)
    return settings.with_dtype(precision(settings.train.device, settings.model.dtype).dtype)


def progress(words: str) -> None:
    err.print(f"  {words}", highlight=False)


@app.command("train")
def bench_train(
    data: Annotated[str, typer.Option(help="A file in TRL's unpaired preference format.")],
    steps: Annotated[int, typer.Option(min=1, help="Measured steps of each process.")] = 6,
    repeats: Annotated[int, typer.Option(min=1, help="Processes of each variant; medians count.")] = 3,
    out_dir: Annotated[str, typer.Option("--out")] = "runs/bench",
    as_json: AsJson = False,
    config: ConfigFile = None,
    set_: Overrides = None,
) -> None:
    """Tokens a second of our KTO step and of TRL's KTOTrainer, with its defaults and at its best."""
    settings = bench_settings(config, [*BENCH_TRAIN, *(set_ or [])])
    from kto_ray.bench import train as bench

    report = bench.bench_train(settings, data, steps, repeats, out_dir, lambda words: err.print(f"  {words}"))
    if as_json:
        out.print_json(data=report)
        return
    out.print(bench.table(report))
    out.print(f"written to {out_dir}/train.json")


@app.command("learn")
def bench_learn(
    data: Data,
    test: Annotated[int, typer.Option(min=10, help="Held-out conversations that the table is judged on.")] = 200,
    validation: Annotated[int, typer.Option(min=10, help="Conversations that hyperparameters are chosen by.")] = 70,
    conversations: Annotated[int, typer.Option(min=8, help="Conversations that a seed trains on.")] = 120,
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    jobs: Annotated[int, typer.Option(min=1, help="Experiments at a time, of train.threads threads each.")] = 2,
    ablation: Annotated[bool, typer.Option("--ablation", help="KTO without its parts, in place of the table.")] = False,
    out_dir: OutDir = "runs/bench",
    as_json: AsJson = False,
    config: ConfigFile = None,
    set_: Overrides = None,
) -> None:
    """Held-out accuracy and AUC of KTO (ours, TRL's), APO-zero, SFT and DPO. A run that was cut off goes on."""
    settings = bench_settings(config, [*BENCH_LEARN, *(set_ or [])])
    from kto_ray.bench import learn as bench

    sizes = bench.Sizes(test, validation, conversations, seeds)
    report = bench.bench_learn(settings, data, sizes, ablation, jobs, out_dir, progress)
    out.print_json(data=report) if as_json else out.print(bench.table(report))


@app.command("edits")
def bench_edits(
    events: Annotated[int, typer.Option(min=8, help="Events of each kind.")] = 48,
    held_out: Annotated[int, typer.Option(min=8, help="Questions that are asked about afterwards.")] = 40,
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    out_dir: OutDir = "runs/bench",
    as_json: AsJson = False,
    config: ConfigFile = None,
    set_: Overrides = None,
) -> None:
    """How far an edit moves the policy, against a thumb. A run that was cut off goes on."""
    settings = bench_settings(config, set_)
    from kto_ray.bench import edits as bench

    report = bench.bench_edits(settings, events, held_out, seeds, out_dir, progress)
    out.print_json(data=report) if as_json else out.print(bench.table(report))


@app.command("rounds")
def bench_rounds(
    taste: Annotated[str, typer.Option(help="What the users like: short, name or question.")] = "short",
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    chats: Annotated[int, typer.Option(min=16, help="Users who ask and judge in a round.")] = 64,
    fresh: Annotated[int, typer.Option(min=16, help="Questions that every policy is measured on.")] = 64,
    out_dir: OutDir = "runs/bench",
    as_json: AsJson = False,
    config: ConfigFile = None,
    set_: Overrides = None,
) -> None:
    """Rounds in a row: each adapter from the base on all feedback, or from the one before on the newest."""
    settings = bench_settings(config, set_)
    from kto_ray.bench import rounds as bench

    report = bench.bench_rounds(settings, taste, rounds, chats, fresh, out_dir, progress)
    out.print_json(data=report) if as_json else out.print(bench.table(report))


@app.command("data")
def bench_data(
    rows: Annotated[list[int] | None, typer.Option(min=1, help="Stored examples; repeat for several sizes.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Measured training steps of a repeat, from each source.")] = 12,
    repeats: Annotated[int, typer.Option(min=1, help="Of the streaming measurement; medians count.")] = 9,
    store: Annotated[str | None, typer.Option(help="An empty PostgreSQL database to fill; SQLite otherwise.")] = None,
    out_dir: OutDir = "runs/bench",
    as_json: AsJson = False,
    config: ConfigFile = None,
    set_: Overrides = None,
) -> None:
    """Snapshots of 100,000, 300,000 and 1,000,000 made-up examples: time, memory, and what streaming one costs."""
    settings = bench_settings(config, [*(set_ or []), *([f"store_url={store}"] if store else [])])
    from kto_ray.bench import data as bench

    sizes = rows or [100_000, 300_000, 1_000_000]
    report = bench.bench_data(settings, sizes, steps, repeats, out_dir, progress)
    if as_json:
        out.print_json(data=report)
    else:
        out.print(bench.table(report))
        out.print(f"written to {out_dir}/data.json")


@app.command("serve")
def bench_serve(
    at_once: Annotated[list[int] | None, typer.Option(min=1, help="Requests at once; repeat for several.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each in a process.")] = 3,
    repeats: Annotated[int, typer.Option(min=1, help="Processes of each variant; medians count.")] = 2,
    out_dir: OutDir = "runs/bench",
    as_json: AsJson = False,
    config: ConfigFile = None,
    set_: Overrides = None,
) -> None:
    """Tokens a second of the policy's engine on a CPU: without adapters, with them, and as vLLM serves them."""
    settings = bench_settings(config, set_)
    from kto_ray.bench import serve as bench

    report = bench.bench_serve(settings, at_once or [16, 32], rounds, repeats, out_dir, progress)
    out.print_json(data=report) if as_json else out.print(bench.table(report))


@app.command("peeking")
def bench_peeking(
    runs: Annotated[int, typer.Option(min=10, help="Simulated A/B tests of each pair of rates.")] = 1000,
    users: Annotated[int, typer.Option(min=40, help="Looks of a test, one after each user.")] = 400,
    patience: Annotated[int, typer.Option(min=40, help="Users after which no gain is looked for any more.")] = 2000,
    out_dir: OutDir = "runs/bench",
    as_json: AsJson = False,
    config: ConfigFile = None,
    set_: Overrides = None,
) -> None:
    """The A/B test's error rate where it is looked at after every user, and how many users it needs."""
    settings = bench_settings(config, set_)
    from kto_ray.bench import peeking as bench

    report = bench.bench_peeking(settings, runs, users, patience, out_dir, progress)
    out.print_json(data=report) if as_json else out.print(bench.table(report))


@app.command("chat")
def bench_chat(
    users: Annotated[int, typer.Option(min=1, help="Who chat and judge at once.")] = 24,
    seconds: Annotated[float, typer.Option(min=5, help="Of measurement, after a warm-up.")] = 60,
    out_dir: OutDir = "runs/bench",
    as_json: AsJson = False,
    config: ConfigFile = None,
    set_: Overrides = None,
) -> None:
    """The whole service under users who chat: answers a second, and the share of the cores that the model gets."""
    settings = bench_settings(config, ["model.max_model_len=512", "data.max_length=256", *(set_ or [])])
    from kto_ray.bench import chat as bench

    report = bench.bench_chat(settings, users, seconds, out_dir, progress)
    out.print_json(data=report) if as_json else out.print(bench.table(report))
