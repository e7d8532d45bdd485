"""The health of a set-up."""

from __future__ import annotations

import dataclasses

import typer
from rich.table import Table

from kto_ray.cli.common import BEGIN, AsJson, ConfigFile, Overrides, out, plain, settings_of, step

app = typer.Typer()


@app.command(rich_help_panel=BEGIN)
def doctor(as_json: AsJson = False, config: ConfigFile = None, set_: Overrides = None) -> None:
    """What this machine is, what is missing and what mends it, and how fast to expect things."""
    settings = settings_of(config, set_)
    from kto_ray.doctor import examine

    with step("looking at this machine"):
        checks = examine(settings)
    if as_json:
        out.print_json(data=[dataclasses.asdict(check) for check in checks])
    else:
        table = Table("check", "", "found")
        for check in checks:
            words = check.found if check.ok or not check.fix else f"{check.found}; to mend it: {check.fix}"
            table.add_row(check.name, "[green]ok[/]" if check.ok else "[red]wrong[/]", plain(words))
        out.print(table)
    raise typer.Exit(0 if all(check.ok for check in checks) else 1)
