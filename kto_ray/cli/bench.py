"""Benchmarks; each measures its peer in the same run."""

from __future__ import annotations

from typing import Annotated

import typer

from kto_ray.cli.common import AsJson, ConfigFile, Overrides, err, out, settings_of

app = typer.Typer(no_args_is_help=True, help="Measure speed and learning, the peer in the same run.")


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
    settings = settings_of(config, set_)
    from kto_ray.bench import train as bench

    report = bench.bench_train(settings, data, steps, repeats, out_dir, lambda words: err.print(f"  {words}"))
    if as_json:
        out.print_json(data=report)
        return
    out.print(bench.table(report))
    out.print(f"written to {out_dir}/train.json")


@app.command("data")
def bench_data(
    rows: Annotated[list[int] | None, typer.Option(min=1, help="Stored examples; repeat for several sizes.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Measured training steps of a repeat, from each source.")] = 6,
    repeats: Annotated[int, typer.Option(min=1, help="Of the streaming measurement; medians count.")] = 3,
    store: Annotated[str | None, typer.Option(help="An empty PostgreSQL database to fill; SQLite otherwise.")] = None,
    out_dir: Annotated[str, typer.Option("--out")] = "runs/bench",
    as_json: AsJson = False,
    config: ConfigFile = None,
    set_: Overrides = None,
) -> None:
    """Snapshots of 100,000, 300,000 and 1,000,000 made-up examples: time, memory, and what streaming one costs."""
    settings = settings_of(config, [*(set_ or []), *([f"store_url={store}"] if store else [])])
    from kto_ray.bench import data as bench

    sizes = rows or [100_000, 300_000, 1_000_000]
    report = bench.bench_data(settings, sizes, steps, repeats, out_dir, lambda words: err.print(f"  {words}"))
    if as_json:
        out.print_json(data=report)
    else:
        out.print(bench.table(report))
        out.print(f"written to {out_dir}/data.json")
