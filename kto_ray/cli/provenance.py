"""From a thumb to what it touched, and a user or a completion taken out of all of it."""

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
    store_there,
    tell,
)
from kto_ray.cli.source import Source
from kto_ray.config import Config

if TYPE_CHECKING:
    from kto_ray.provenance.erasure import Reach
    from kto_ray.records.erasure import Subject
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
def erase(
    user: Annotated[str | None, typer.Argument(help="The user, as PRINCIPAL/USER where API keys are in use.")] = None,
    completion: Annotated[
        str | None, typer.Option("--completion", help="Erase one completion and all that was said of it.")
    ] = None,
    retrain: Annotated[
        bool, typer.Option("--retrain", help="Rebuild the snapshots of the affected adapters in service and train.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
    set_: Overrides = None,
) -> None:
    """Erase a user, or one completion: texts, rows, and the snapshots that hold any; the service may run."""
    settings = settings_of(config, set_)
    with step("looking in the store and in every snapshot"):
        from kto_ray.provenance import erasure
        from kto_ray.store.custody import Busy

        subject = _subject(user, completion)
        store = store_there(settings)
        with store.read() as tx:
            reach = erasure.reach_of(tx, settings, subject)
    if dry_run:
        tell({"erased": False, **asdict(reach.told())}, as_json)
        return
    if not yes:
        for key, value in asdict(reach.told()).items():
            err.print(plain(f"{key}: {value}"), soft_wrap=True)
        typer.confirm("Delete these rows and the shards of these snapshots, for good?", abort=True, err=True)
    with step("erasing"):
        try:
            told = erasure.erase(store, settings, subject)
        except Busy as error:
            raise ValueError(str(error)) from None
    replaced = _retrain(settings, store, reach) if retrain else []
    store.close()
    tell({"erased": True, **asdict(told), "retrained": replaced, "next": _next_step(reach, retrain)}, as_json)


def _subject(user: str | None, completion: str | None) -> Subject:
    from kto_ray.records.erasure import Subject

    if user is not None and completion is None:
        return Subject("user", user)
    if completion is not None and user is None:
        return Subject("completion", completion)
    raise ValueError("name either a USER or --completion ID, not both and not neither: kto-ray erase ann")


def _retrain(settings: Config, store: Store, reach: Reach) -> list[dict[str, Any]]:
    """Train what replaces the affected adapters; what an earlier erasure trained already is only named."""
    from kto_ray.cli.learning import train_on
    from kto_ray.provenance import erasure

    affected, replaced = erasure.to_replace(reach), []
    with ray_up(settings) if affected else nullcontext():
        for version in affected:
            with step(f"sealing the snapshot of {version.name} without what is erased"):
                manifest, made = erasure.rebuild(store, settings, version)
            made = made or train_on(erasure.replacing(settings, version), manifest).version
            replaced.append(
                {"adapter": made.name, "instead_of": version.name, "snapshot": manifest.id, "sha256": made.sha256}
            )
    return replaced


def _next_step(reach: Reach, retrained: bool) -> str:
    served = [f"{v.name} ({', '.join(aliases)})" for v in reach.adapters if (aliases := reach.served_as(v))]
    if not served:
        return "no adapter in service learnt from it"
    made = "the retrained versions are published, not rolled out" if retrained else "--retrain trains replacements"
    return (
        f"in service, and learnt from it: {', '.join(served)}; {made}. The loop's next round trains on what is "
        "left and brings its candidate through gate and A/B test: POST /v1/loop/run starts it now"
    )
