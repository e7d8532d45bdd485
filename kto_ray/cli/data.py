"""Snapshots, for a person."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from kto_ray.cli.common import AsJson, ConfigFile, Overrides, out, settings_of

app = typer.Typer(no_args_is_help=True, help="Look at snapshots.")


@app.command("show")
def data_show(
    snapshot: Annotated[str, typer.Argument(help="A snapshot's id, as `kto-ray adapters` shows it.")],
    rows: Annotated[int, typer.Option(min=0, help="Training rows to look at.")] = 3,
    as_json: AsJson = False,
    config: ConfigFile = None,
    set_: Overrides = None,
) -> None:
    """What a snapshot holds: counts, ratio, weights, what was left out, hashes, and a look at some rows."""
    settings = settings_of(config, set_)
    from kto_ray.data import show
    from kto_ray.data.snapshot import load_manifest
    from kto_ray.model import resolve_model
    from kto_ray.paths import Paths

    uri = Paths(settings.home).snapshot(snapshot)
    manifest = load_manifest(uri)
    looked_at = show.some_rows(uri, manifest, resolve_model(settings.model), settings.model.revision, rows)
    if as_json:
        out.print_json(data={**dataclasses.asdict(manifest), "rows": looked_at})
    else:
        out.print(show.page(manifest, looked_at))
