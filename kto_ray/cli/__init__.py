"""The command line. Heavy imports happen inside commands, so that help and config errors come at once."""

from __future__ import annotations

import sys

import typer

from kto_ray.cli import adapters, bench, data, doctor, feedback, keys, learning, provenance, service
from kto_ray.cli.common import BEGIN, LEARN, RUN, err, plain
from kto_ray.cluster import quiet

HELP = """Serve a chat model, collect what its users say of the answers, and let it learn from that: thumbs and edits
become a LoRA adapter (KTO), which a gate and an A/B test must approve before it answers everybody.

Begin with [bold]kto-ray demo[/]: the whole loop on this machine, with simulated users. Then [bold]kto-ray serve[/]."""

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich", help=HELP
)
for module in (service, adapters, learning, provenance, doctor):
    app.add_typer(module.app)
app.add_typer(keys.app, name="keys", rich_help_panel=RUN)
app.add_typer(feedback.app, name="feedback", rich_help_panel=LEARN)
app.add_typer(data.app, name="data", rich_help_panel=LEARN)
app.add_typer(bench.app, name="bench", rich_help_panel=BEGIN)


def main() -> None:
    """Run a command; a user's mistake ends in one clear message and exit code 2, anything else in a traceback."""
    quiet()
    try:
        app()
    except ValueError as error:
        err.print(f"[bold red]error[/] {plain(str(error))}", soft_wrap=True)
        sys.exit(2)
