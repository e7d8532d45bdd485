"""API keys: who may call the service, and for what."""

from __future__ import annotations

import re
import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

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
from kto_ray.config.platform import NAME
from kto_ray.records.keys import Key, Scope

app = typer.Typer(no_args_is_help=True, help="Make, list and revoke the API keys of a service.")
SCOPES = ", ".join(Scope)


@app.command("create")
def keys_create(
    name: Annotated[
        str, typer.Argument(help="Whose it is: an application or a person. Several keys may share a name.")
    ],
    scope: Annotated[list[str] | None, typer.Option("--scope", help=f"One of {SCOPES}. Repeatable.")] = None,
    vouches: Annotated[
        bool, typer.Option("--vouches", help="It knows its users: a request's `user` is believed, as NAME/USER.")
    ] = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
    set_: Overrides = None,
) -> None:
    """Make a key, and show it this once. With the first one, a service answers to keys only."""
    settings = settings_of(config, set_)
    scopes = _scopes(scope or [])
    if not re.fullmatch(NAME, name):
        raise ValueError(f"NAME must be of lower-case letters, digits, '.', '_' and '-', up to 64, got {name!r}")
    from kto_ray.store import keys, store_of

    store = store_of(settings)
    with store.write() as tx:
        key, token = keys.create(tx, name, scopes, vouches, settings.salt, time.time())
    store.close()
    tell({**_shown(key), "key": token}, as_json)
    err.print("Keep it: only its hash is stored. It is sent as `Authorization: Bearer KEY`.")


@app.command("list")
def keys_list(as_json: AsJson = False, config: ConfigFile = None, set_: Overrides = None) -> None:
    """All keys, oldest first, the revoked ones too; what opens them is not kept."""
    settings = settings_of(config, set_)
    from kto_ray.store import keys

    found = read_store(settings, keys.every)
    if as_json:
        out.print_json(data=[_shown(key) for key in found])
        return
    table = Table("id", "name", "scopes", "vouches", "made", "revoked")
    for key in found:
        table.add_row(
            key.id,
            key.name,
            ", ".join(key.scopes),
            "yes" if key.vouches else "",
            _day(key.created_at),
            _day(key.revoked_at),
        )
    out.print(table)


@app.command("revoke")
def keys_revoke(
    key: Annotated[str, typer.Argument(help="A key's id, as `kto-ray keys list` shows it.")],
    as_json: AsJson = False,
    config: ConfigFile = None,
    set_: Overrides = None,
) -> None:
    """End a key. Every gateway refuses it within a second."""
    settings = settings_of(config, set_)
    from kto_ray.store import keys

    store = store_there(settings)
    with store.write() as tx:
        found = keys.revoke(tx, key, time.time())
    store.close()
    if not found:
        raise ValueError(f"key {key!r} does not exist; `kto-ray keys list` shows which do")
    tell({"id": key, "revoked": True}, as_json)


def _scopes(given: list[str]) -> list[Scope]:
    unknown = [word for word in given if word not in set(Scope)]
    if unknown or not given:
        raise ValueError(f"--scope must be one of {SCOPES}, got {', '.join(map(repr, unknown)) or 'none'}")
    scopes = list(dict.fromkeys(Scope(word) for word in given))
    if {Scope.FEEDBACK, Scope.REVIEWER} <= set(scopes):
        raise ValueError(
            "--scope feedback and --scope reviewer cannot be of one key: what a reviewer says is kept apart from what "
            "users say; make two"
        )
    return scopes


def _shown(key: Key) -> dict[str, object]:
    shown = {name: value for name, value in asdict(key).items() if name != "hash"}
    return {**shown, "scopes": [scope.value for scope in key.scopes]}


def _day(at: float | None) -> str:
    return "" if at is None else plain(datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M"))
