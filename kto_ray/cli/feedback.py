"""Feedback in and out as files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kto_ray.cli.common import AsJson, ConfigFile, Overrides, err, read_store, settings_of, tell

app = typer.Typer(no_args_is_help=True, help="Move feedback in and out as TRL's unpaired preference format.")


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
    from kto_ray.store import completions, open_store
    from kto_ray.store import feedback as log

    rows = read_unpaired(file)
    store = open_store(settings.database_url)
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
