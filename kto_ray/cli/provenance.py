"""From a thumb to what it touched, and a user taken out of all of it."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kto_ray.cli.common import (
    ANSWER,
    AsJson,
    ConfigFile,
    Overrides,
    err,
    out,
    plain,
    ray_up,
    settings_of,
    step,
    tell,
)
from kto_ray.cli.source import Source
from kto_ray.config import Config

if TYPE_CHECKING:
    from kto_ray.provenance.erasure import Reach
    from kto_ray.store import Store

app = typer.Typer()


@app.command(rich_help_panel=ANSWER)
def lineage(
    name: Annotated[str, typer.Argument(help="A completion id, a user, or an adapter version.")],
    config: ConfigFile = None,
    set_: Overrides = None,
) -> None:
    """From a thumb to every snapshot, adapter and arm it touched, and back."""
    settings = settings_of(config, set_)
    out.print_json(data=Source(settings).lineage(name), default=str)


@app.command(rich_help_panel=ANSWER)
def purge(
    user: Annotated[str, typer.Argument(help="The user as the service knows them.")],
    retrain: Annotated[
        bool, typer.Option("--retrain", help="Rebuild the snapshots of the affected adapters in service and train.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
    set_: Overrides = None,
) -> None:
    """Erase a user: their rows in the store and the snapshots that hold any. Adapters stay until they are replaced."""
    settings = settings_of(config, set_)
    with step("looking for the user in the store and in every snapshot"):
        from kto_ray.provenance import erasure
        from kto_ray.store import open_store

        store = open_store(settings.database_url)
        with store.read() as tx:
            reach = erasure.reach_of(tx, settings, user)
    told = _told(reach)
    if dry_run:
        tell({"purged": False, **told}, as_json)
        return
    if not yes:
        for key, value in told.items():
            err.print(plain(f"{key}: {value}"), soft_wrap=True)
        typer.confirm("Delete these rows and the shards of these snapshots, for good?", abort=True, err=True)
    with step("erasing the user"):
        told = _told(erasure.purge(store, settings, user))
    replaced = _retrain(settings, store, reach) if retrain else []
    store.close()
    tell({"purged": True, **told, "retrained": replaced, "next": _next_step(reach, retrain)}, as_json)


def _told(reach: Reach) -> dict[str, Any]:
    return {
        "user": reach.user,
        "rows": asdict(reach.rows),
        "snapshots": [{"snapshot": h.snapshot, "rows": h.rows, "purged_at": h.purged_at} for h in reach.snapshots],
        "adapters": [{"adapter": v.name, "aliases": reach.served_as(v)} for v in reach.adapters],
        "unknown": list(reach.unknown),
    }


def _retrain(settings: Config, store: Store, reach: Reach) -> list[dict[str, Any]]:
    """Train what replaces the affected adapters; what an earlier purge of the user trained already is only named."""
    from kto_ray.cli.learning import train_on
    from kto_ray.provenance import erasure

    affected, replaced = erasure.to_replace(reach), []
    with ray_up(settings) if affected else nullcontext():
        for version in affected:
            with step(f"sealing the snapshot of {version.name} without the user"):
                manifest, made = erasure.rebuild(store, settings, version)
            made = made or train_on(erasure.replacing(settings, version), manifest).version
            replaced.append(
                {"adapter": made.name, "instead_of": version.name, "snapshot": manifest.id, "sha256": made.sha256}
            )
    return replaced


def _next_step(reach: Reach, retrained: bool) -> str:
    served = [f"{v.name} ({', '.join(aliases)})" for v in reach.adapters if (aliases := reach.served_as(v))]
    if not served:
        return "no adapter in service was trained on the user"
    made = "the retrained versions are published, not rolled out" if retrained else "--retrain trains replacements"
    return (
        f"still served, and trained on the user: {', '.join(served)}; {made}. The loop's next round trains on what is "
        "left and brings its candidate through gate and A/B test: POST /v1/loop/run starts it now"
    )
