"""kto-ray: the command line. Heavy imports happen inside commands, so help and config errors come at once."""

from __future__ import annotations

import sys

import typer

from kto_ray.cli import adapters, bench, data, doctor, feedback, learning, provenance, service
from kto_ray.cli.common import err, plain

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
for module in (service, learning, adapters, provenance, doctor):
    app.add_typer(module.app)
app.add_typer(feedback.app, name="feedback")
app.add_typer(data.app, name="data")
app.add_typer(bench.app, name="bench")


def main() -> None:
    """Run a command; a user's mistake ends in one clear message and exit code 2, anything else in a traceback."""
    try:
        app()
    except ValueError as error:
        err.print(f"[bold red]error[/] {plain(str(error))}", soft_wrap=True)
        sys.exit(2)
