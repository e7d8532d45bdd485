"""Adapter versions, the A/B test between two of them, and the rounds that make them."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.table import Table

from kto_ray.cli.common import (
    RUN,
    AsJson,
    ConfigFile,
    Overrides,
    err,
    out,
    plain,
    read_store,
    settings_of,
    step,
    tell,
)
from kto_ray.cli.source import Source
from kto_ray.config import Config
from kto_ray.records.requests import MEANS, Act

app = typer.Typer()
STEERED = tuple(act.value for act in MEANS if act is not Act.END)
# By what they mean
OPTIONS = {"rollout": "--rollout", "candidate": "--candidate", "champion": "--leave", "why": "--why"}


@app.command("adapters", rich_help_panel=RUN)
def adapters_(
    action: Annotated[str | None, typer.Argument(help="`show` for one version, `sign` to sign one.")] = None,
    name: Annotated[str | None, typer.Argument(help="The version.")] = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
    set_: Overrides = None,
) -> None:
    """List adapter versions, or `adapters show V` for all that is known of one.

    `adapters sign V` signs one that was published before there was a key, or under one that is to go, as the store
    knows it.
    """
    settings = settings_of(config, set_)
    if action == "sign" and name is not None:
        tell(_sign(settings, name), as_json)
        return
    told = Source(settings).adapters()
    if action is not None:
        if action != "show" or name is None:
            words = "adapters takes nothing, `show VERSION` or `sign VERSION`"
            raise ValueError(f"{words}, got {action!r} {name or ''}")
        found = [a for a in told["adapters"] if a["name"] == name]
        if not found:
            raise ValueError(f"adapter {name!r} is not in the store; `kto-ray adapters` lists what is")
        out.print_json(data=found[0], default=str)
        return
    if as_json:
        out.print_json(data=told, default=str)
        return
    table = Table("version", "snapshot", "parent", "gate", "alias")
    alias_of = {adapter: alias for alias, adapter in told["aliases"].items()}
    for version in told["adapters"]:
        gate = version["gate"]["decision"] if version["gate"] else "-"
        row = (version["name"], version["snapshot"] or "-", version["parent"] or "-", gate)
        table.add_row(*row, alias_of.get(version["name"], ""))
    out.print(table)


def _sign(settings: Config, name: str) -> dict[str, Any]:
    from kto_ray.adapters.publish import sign
    from kto_ray.store import adapters

    version = read_store(settings, lambda tx: adapters.get(tx, name))
    if version is None:
        raise ValueError(f"adapter {name!r} is not in the store; `kto-ray adapters` lists what is")
    sign(settings, version)
    return {"adapter": name, "signed": True}


@app.command(rich_help_panel=RUN)
def rollout(
    action: Annotated[
        str,
        typer.Argument(
            help="get, approve, reject, promote, abort, pause, resume, rollback, reset-budget, or replay (by other "
            "levels, margins, users and hours, as --set rollout.alpha=0.2; what has no effect on it is named)."
        ),
    ] = "get",
    rollout_id: Annotated[
        str | None,
        typer.Option(
            "--rollout",
            help="For promote, abort, pause, resume, replay: the one that is meant; without it, the one in progress.",
        ),
    ] = None,
    leave: Annotated[
        str | None, typer.Option(help="For rollback: the champion to leave, as `adapters` names it.")
    ] = None,
    candidate: Annotated[
        str | None,
        typer.Option(help="For approve and reject: the version that is meant; without it, the one that waits."),
    ] = None,
    why: Annotated[
        str | None,
        typer.Option(help="For reset-budget: the reason, which stays on record with the name of your key."),
    ] = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
    set_: Overrides = None,
) -> None:
    """Show or steer the A/B test, or say whether the candidate that waits may begin one (loop.require_approval).

    Changes are asked of the controller, which answers.
    """
    settings = settings_of(config, set_)
    if action not in ("get", "replay", *STEERED):
        raise ValueError(f"rollout {action!r} does not exist; use get, replay or one of: {', '.join(STEERED)}")
    meant = {"rollout": rollout_id, "candidate": candidate, "champion": leave, "why": why}
    _check_options(action, meant)
    if action == Act.RESET_BUDGET and why is None:
        raise ValueError("a reset of the error budget says why, for the record: --why TEXT")
    source = Source(settings)
    if action == "get":
        out.print_json(data=source.rollout()["rollout"], default=str)
        return
    if action == "replay":
        _replay(source, rollout_id, as_json)
        return
    if action == Act.ROLLBACK and leave is None:
        champion = source.adapters()["aliases"]["champion"]
        raise ValueError(
            f"a rollback names the champion to leave, so that asked twice it is done once: --leave {champion}"
        )
    _ask(source, "rollout", action, as_json, **meant)


@app.command(rich_help_panel=RUN)
def loop(
    action: Annotated[str, typer.Argument(help="run: begin a round now. abort: end the one in progress.")],
    round_: Annotated[
        int | None,
        typer.Option("--round", min=1, help="For abort: the one that is meant; without it, the one in progress."),
    ] = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
    set_: Overrides = None,
) -> None:
    """Begin a round of the loop now, or end the one in progress in whatever stage it is.

    Asked of the controller, which answers. `kto-ray status` shows where the loop stands.
    """
    settings = settings_of(config, set_)
    if action not in ("run", "abort"):
        raise ValueError(f"loop {action!r} does not exist; use run or abort (`kto-ray status` shows where it stands)")
    if action == "run" and round_ is not None:
        raise ValueError("loop run takes no --round: it begins the next one")
    _ask(Source(settings), "loop", action, as_json, round=None if round_ is None else str(round_))


def _check_options(action: str, meant: dict[str, str | None]) -> None:
    """What an act would pass over might narrow what is meant.

    Raises:
        ValueError: an option that is not the act's.
    """
    own = "rollout" if action == "replay" else MEANS[Act(action)] if action in STEERED else None
    for name, value in meant.items():
        if value is not None and name != own:
            takes = f"{OPTIONS[own]}, and not" if own is not None else "no"
            raise ValueError(f"rollout {action} takes {takes} {OPTIONS[name]} (got {value!r})")


def _replay(source: Source, rollout_id: str | None, as_json: bool) -> None:
    replayed = source.replayed(rollout_id)
    if as_json:
        tell(asdict(replayed), as_json)
        return
    for words in replayed.notes:
        err.print(plain(f"note: {words}"), soft_wrap=True)
    if replayed.without_effect:
        words = f"{', '.join(replayed.without_effect)}: not as the test had it, which a replay keeps; no effect here"
        err.print(plain(f"note: {words}"), soft_wrap=True)
    for stage in replayed.stages:
        when = "never" if stage.at is None else datetime.fromtimestamp(stage.at, UTC).isoformat(" ", "seconds")
        out.print(plain(f"{stage.stage}: {stage.action}, {when}: {stage.reason}"), soft_wrap=True)


def _ask(source: Source, noun: str, action: str, as_json: bool, **meant: str | None) -> None:
    with step("asking the controller"):
        told, done = source.ask(noun, action, **meant)
    tell(told, as_json)
    if not done:
        raise typer.Exit(1)
