"""From a thumb to what it touched."""

from __future__ import annotations

from typing import Annotated

import typer

from kto_ray.cli.common import ConfigFile, Overrides, out, read_store, settings_of

app = typer.Typer()


@app.command()
def lineage(
    name: Annotated[str, typer.Argument(help="A completion id, a user, or an adapter version.")],
    config: ConfigFile = None,
    set_: Overrides = None,
) -> None:
    """From a thumb to every snapshot, adapter and arm it touched, and back."""
    settings = settings_of(config, set_)
    from kto_ray.lineage import lineage as trace

    out.print_json(data=read_store(settings, lambda tx: trace(tx, settings, name)), default=str)
