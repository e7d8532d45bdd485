"""Snapshots, for a person; and what the config says is to go."""

from __future__ import annotations

import dataclasses
import time
from typing import Annotated

import typer

from kto_ray.cli.common import AsJson, ConfigFile, Overrides, out, settings_of, step, store_there, tell

app = typer.Typer(no_args_is_help=True, help="Look at snapshots; archive what is old.")


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
    from kto_ray.data.manifest import load_manifest
    from kto_ray.model import resolve_model
    from kto_ray.paths import Paths

    uri = Paths(settings.home).snapshot(snapshot)
    manifest = load_manifest(uri)
    looked_at = show.some_rows(uri, manifest, resolve_model(settings.model), settings.model.revision, rows)
    if as_json:
        out.print_json(data={**dataclasses.asdict(manifest), "rows": looked_at})
    else:
        out.print(show.page(manifest, looked_at))


@app.command("archive")
def data_archive(as_json: AsJson = False, config: ConfigFile = None, set_: Overrides = None) -> None:
    """Do at once what the service does by itself: move old texts to archives, delete what `retention` lets go."""
    settings = settings_of(config, set_)
    if settings.retention.keeps_all:
        raise ValueError(
            "retention keeps everything for ever; say what is to go: --set retention.completions_days=90, and see "
            "kto_ray/config/retention.py for the other fields"
        )
    with step("archiving"):
        from kto_ray.provenance.retention import keep
        from kto_ray.store.custody import Busy

        store = store_there(settings)
        try:
            kept = keep(store, settings, time.time())
        except Busy as error:
            raise ValueError(str(error)) from None
        except OSError as error:
            raise ValueError(f"{error}; what was not done is still due, nothing is lost") from None
        finally:
            store.close()
    told = dataclasses.asdict(kept)
    del told["after"]
    tell(told, as_json)
