"""Feedback in and out as files, and what of it waits for an operator."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from kto_ray.cli.common import (
    AsJson,
    ConfigFile,
    Overrides,
    err,
    out,
    plain,
    read_store,
    settings_of,
    store_there,
    tell,
)
from kto_ray.config import Config

if TYPE_CHECKING:
    from kto_ray.feedback.quarantine import Why

app = typer.Typer(no_args_is_help=True, help="Move feedback in and out as files, and decide on what is held.")


@app.command("import")
def feedback_import(
    file: Annotated[Path, typer.Argument(help="JSON lines (.gz too): prompt, completion, label.")],
    as_json: AsJson = False,
    config: ConfigFile = None,
    set_: Overrides = None,
) -> None:
    """Import judgements in TRL's unpaired preference format. Importing a file twice adds nothing."""
    settings = settings_of(config, set_)
    from rich.progress import track

    from kto_ray.feedback.files import read_unpaired
    from kto_ray.store import completions, store_of
    from kto_ray.store import feedback as log

    rows = read_unpaired(file)
    store = store_of(settings)
    added = 0
    batches = [rows[i : i + 500] for i in range(0, len(rows), 500)]
    for batch in track(batches, "importing", console=err):
        with store.write() as tx:
            for completion, thumb in batch:
                if completions.get(tx, completion.id) is None:
                    completions.insert(tx, completion)
                if log.get(tx, thumb.id) is None:  # else this very judgement was imported before
                    log.record(tx, thumb)
                    added += 1
    tell({"rows": len(rows), "imported": added, "already_there": len(rows) - added}, as_json)


@app.command("retry")
def feedback_retry(as_json: AsJson = False, config: ConfigFile = None, set_: Overrides = None) -> None:
    """Give the store once more what it refused from the spools of this machine, as when the cause is mended."""
    settings = settings_of(config, set_)
    from kto_ray.provenance.spooled import retry
    from kto_ray.store import open_store

    store = open_store(settings.database_url)
    taken, left = retry(store, Path(settings.spool), settings.feedback)
    store.close()
    tell({"stored": taken, "refused_again": left}, as_json)


@app.command("export")
def feedback_export(
    file: Annotated[Path, typer.Argument(help="Where to write JSON lines.")],
    as_json: AsJson = False,
    config: ConfigFile = None,
    set_: Overrides = None,
) -> None:
    """Export all labelled examples in TRL's unpaired preference format."""
    settings = settings_of(config, set_)
    from kto_ray.data.seal import read_examples
    from kto_ray.feedback.files import write_unpaired
    from kto_ray.store import labels

    ranges = read_store(settings, lambda tx: labels.key_ranges(tx, settings.data.rows_per_range))
    total = 0
    try:
        target = file.open("w", encoding="utf-8")
    except OSError as error:
        raise ValueError(f"FILE is {str(file)!r}, which cannot be written: {error.strerror}; name another") from None
    with target:
        for keys in ranges:
            examples = read_examples(settings.database_url, keys)
            write_unpaired(examples, target)
            total += len(examples)
    tell({"exported": total, "file": str(file)}, as_json)


Ids = Annotated[list[str] | None, typer.Argument(help="Ids of feedback events.")]
OfReason = Annotated[str | None, typer.Option("--why", help="All that are held for this reason.")]
OfUser = Annotated[str | None, typer.Option("--user", help="All that are held of this user.")]


@app.command("held")
def feedback_held(
    why: OfReason = None,
    user: OfUser = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
    set_: Overrides = None,
) -> None:
    """What waits for an operator, oldest first: it neither trains nor counts meanwhile."""
    settings = settings_of(config, set_)
    from kto_ray.store import quarantine

    reason = _reason(why)
    found, total = read_store(settings, lambda tx: (quarantine.waiting(tx, reason, user), quarantine.by_reason(tx)))
    if as_json:
        return out.print_json(data={"held": total, "events": [asdict(event) for event in found]}, default=str)
    table = Table("id", "why", "user", "kind", "says", title=f"held: {total or 'nothing'}", title_justify="left")
    for event in found:
        says = event.text if event.text is not None else {True: "up", False: "down", None: ""}[event.value]
        table.add_row(*(plain(str(cell)) for cell in (event.id, event.held_why, event.user, event.kind, says[:60])))
    out.print(table)


@app.command("release")
def feedback_release(
    ids: Ids = None,
    why: OfReason = None,
    user: OfUser = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
    set_: Overrides = None,
) -> None:
    """Let held feedback count."""
    _decide(True, ids, why, user, as_json, settings_of(config, set_))


@app.command("drop")
def feedback_drop(
    ids: Ids = None,
    why: OfReason = None,
    user: OfUser = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
    set_: Overrides = None,
) -> None:
    """Have held feedback never count."""
    _decide(False, ids, why, user, as_json, settings_of(config, set_))


def _decide(
    released: bool, ids: list[str] | None, why: str | None, user: str | None, as_json: bool, settings: Config
) -> None:
    """A transaction a few hundred events, so that nobody waits long for it."""
    from kto_ray.store import quarantine

    if bool(ids) == (why is not None or user is not None):
        raise ValueError("name either ids of feedback, or --why and --user; `kto-ray feedback held` shows them")
    act = quarantine.release if released else quarantine.drop
    reason = _reason(why)
    store = store_there(settings)
    changed = 0
    if ids:
        with store.write() as tx:
            changed = act(tx, ids)
    else:
        while True:
            with store.write() as tx:
                some = [event.id for event in quarantine.waiting(tx, reason, user)]
                changed += act(tx, some)
            if not some:
                break
    store.close()
    tell({"released" if released else "dropped": changed}, as_json)


def _reason(why: str | None) -> Why | None:
    from kto_ray.feedback.quarantine import Why

    if why is None or why in list(Why):
        return None if why is None else Why(why)
    raise ValueError(f"--why is {why!r}; reasons are: {', '.join(Why)}")
