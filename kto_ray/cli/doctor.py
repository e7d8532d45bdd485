"""The health of a set-up."""

from __future__ import annotations

import dataclasses

import typer
from rich.table import Table

from kto_ray.cli.common import AsJson, ConfigFile, Overrides, out, plain, settings_of

app = typer.Typer()


@app.command()
def doctor(as_json: AsJson = False, config: ConfigFile = None, set_: Overrides = None) -> None:
    """Check the set-up: versions, model, store, port, threads."""
    settings = settings_of(config, set_)
    from kto_ray.doctor import examine

    checks = examine(settings)
    if as_json:
        out.print_json(data=[dataclasses.asdict(check) for check in checks])
    else:
        table = Table("check", "", "found")
        for check in checks:
            table.add_row(check.name, "[green]ok[/]" if check.ok else "[red]wrong[/]", plain(check.found))
        out.print(table)
    raise typer.Exit(0 if all(check.ok for check in checks) else 1)
