"""The running service: start it, see where it stands, close the loop once in a demo."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer
from rich.table import Table

from kto_ray.cli.common import (
    BEGIN,
    RUN,
    AsJson,
    ConfigFile,
    Overrides,
    out,
    plain,
    settings_of,
    step,
    tell,
    warn_of_emulation,
)
from kto_ray.cli.source import Source
from kto_ray.config import Config, read

app = typer.Typer()


@app.command(rich_help_panel=BEGIN)
def demo(
    taste: Annotated[
        str, typer.Option(help="What the simulated users like: short, name, question or noise.")
    ] = "short",
    out_dir: Annotated[str, typer.Option("--out", help="Where the report goes.")] = "runs/demo",
    seed: int = 0,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the service up to chat with.")] = False,
    defaults: Annotated[
        bool, typer.Option("--defaults", help="Learn and test as `kto-ray serve` does, without what suits a demo.")
    ] = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
    set_: Overrides = None,
) -> None:
    """Close the loop once before your eyes: chat, thumbs, training, gate, A/B test, promotion."""
    over = read(config, tuple(set_ or ()))
    from kto_ray.demo.run import demo_config, run_demo

    settings = demo_config(over, out_dir, seed, defaults)
    warn_of_emulation(settings)
    raise typer.Exit(run_demo(settings, taste, out_dir, seed, keep, as_json, defaults))


@app.command(rich_help_panel=RUN)
def migrate(as_json: AsJson = False, config: ConfigFile = None, set_: Overrides = None) -> None:
    """Bring the store's schema to this version. With `embedded: false` a step of its own: nothing else changes it."""
    settings = settings_of(config, set_)
    from kto_ray.store.database import STARTED_S, awaited, open_store, revisions

    with step("the store's schema"):
        awaited(lambda: open_store(settings.database_url), STARTED_S).close()
    tell({"schema": revisions()[0]}, as_json)


@app.command(rich_help_panel=RUN)
def serve(
    require_approval: Annotated[
        bool, typer.Option("--require-approval", help="No candidate meets users before `rollout approve`.")
    ] = False,
    config: ConfigFile = None,
    set_: Overrides = None,
) -> None:
    """Run the whole service: gateway, policy replicas and the loop's controller. Ctrl-C or SIGTERM ends it."""
    settings = settings_of(config, [*(set_ or ()), *(["loop.require_approval=true"] if require_approval else ())])
    warn_of_emulation(settings)
    from kto_ray.app import running

    try:
        with step("starting (about a minute on two cores)") as now:
            service = running(settings, now)
            url = service.__enter__()
    except KeyboardInterrupt:
        return  # asked to end before it was ready, and it has
    try:
        out.print(f"ready: {url}/v1  (OpenAI-compatible; state: kto-ray status --watch)")
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        pass
    finally:
        with step("stopping"):
            service.__exit__(None, None, None)


@app.command(rich_help_panel=RUN)
def status(
    watch: Annotated[bool, typer.Option("--watch", help="Refresh every second until Ctrl-C.")] = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
    set_: Overrides = None,
) -> None:
    """Where the loop stands: feedback, the round, the rollout, adapters and replicas."""
    settings = settings_of(config, set_)
    from rich.live import Live

    if not watch:
        told = _state(settings)
        out.print_json(data=told, default=str) if as_json else out.print(_status_table(told))
        return
    with Live(_status_table(_state(settings)), console=out, auto_refresh=False) as live:
        try:
            while True:
                time.sleep(1)
                live.update(_status_table(_state(settings)), refresh=True)
        except KeyboardInterrupt:
            pass


def _state(config: Config) -> dict[str, Any]:
    source = Source(config)
    tests = source.rollout()
    return {
        "loop": source.loop(),
        "adapters": source.adapters(),
        **{name: tests[name] for name in ("rollout", "holdback")},
        "gain": tests.get("loop"),  # an older service has none
        "budget": tests.get("budget"),
        "readiness": source.readiness(),
        "running": source.running,
    }


def _status_table(told: dict[str, Any]) -> Table:
    loop, current, test = told["loop"], told["loop"]["round"], told["rollout"]
    table = Table(title="kto_ray", show_header=False, title_justify="left")
    _show_policy(table, told)
    labels = loop["labels"]
    table.add_row("completions", str(loop["completions"]))
    table.add_row(
        "feedback",
        f"{loop['feedback']['stored']} stored, {loop['feedback']['pending']} pending; labels: "
        f"{labels['desirable']} desirable, {labels['undesirable']} undesirable, {labels['new']} new",
    )
    if loop["feedback"]["held"]:
        why = ", ".join(f"{number} {reason}" for reason, number in loop["feedback"]["held_why"].items())
        table.add_row("", f"{loop['feedback']['held']} held ({why}): kto-ray feedback held")
    if current:
        progress = current["train_metrics"]
        steps = f", step {progress['step']}/{progress['steps']}" if "step" in progress else ""
        table.add_row("round", f"{current['id']}: {current['stage']}{steps}")
        if current["reason"]:
            table.add_row("", f"[red]{plain(current['reason'])}[/]")
        for candidate in current.get("candidates", ()):  # an older service has none
            table.add_row("", plain(_candidate(candidate)))
    for ended in loop["rounds"][-3:]:
        if ended["outcome"]:
            table.add_row("", plain(f"{ended['id']}: {ended['outcome']}: {ended['reason'] or ''}"))
    if test:
        low, high = test["interval"]
        table.add_row(
            "rollout", f"{test['challenger']} against {test['champion']}: {test['status']} {test['stage_name']}"
        )
        table.add_row("", f"weight {test['weight']:.2f}, difference {low:+.3f} to {high:+.3f}")
        for line in _outlook(test):
            table.add_row("", plain(line))
        if asked := test.get("ratings"):  # an older service has none
            table.add_row("", plain(f"ratings that answers asked for: {asked['words']}"))
    if back := told["holdback"]:
        low, high = back["interval"]
        held = f"{back['weight']:.0%} of users stay on {back['challenger']}, {back['stage_name']}"
        table.add_row("holdback", f"{held}: it is better by {low:+.3f} to {high:+.3f}")
        if back["reason"]:
            table.add_row("", plain(back["reason"]))
    if spending := told["budget"]:
        table.add_row("budget", plain(spending["in_words"]))
    if gain := told["gain"]:
        table.add_row("loop", plain(gain["in_words"]))
    table.add_row("next", loop["next"])
    return table


def _show_policy(table: Table, told: dict[str, Any]) -> None:
    """Who answers, and whether anybody decides."""
    replicas = told["readiness"]["replicas"]
    ready = "ready" if told["readiness"]["ready"] else "not ready"
    if not told["running"]:
        ready = "no service runs here (`kto-ray serve` starts one)"
    table.add_row("policy", f"{ready}, {len(replicas)} live replica(s), champion {told['readiness']['champion']}")
    for replica in replicas:
        held = ", ".join(replica["held"]) or "the base"
        table.add_row("", f"{replica['replica']} on {replica['node']} holds {held}, in {replica['dtype']}")
        for adapter, fault in replica["errors"].items():
            words = f"cannot load {adapter} for {fault['age_s']:.0f} s ({fault['tries']} tries): {fault['reason']}"
            table.add_row("", f"[red]{plain(words)}[/]")
    champion, answers = told["readiness"]["champion"], told["readiness"].get("answers")  # an older service has none
    if answers not in (None, champion):
        table.add_row("", f"[red]{answers} answers in place of the champion {champion}[/]")
    acting = told["loop"].get("controller")  # an older service has none
    if acting and told["running"] and not acting["acts"]:
        table.add_row("controller", f"[red]{plain(acting['in_words'])}[/]")


def _candidate(told: dict[str, Any]) -> str:
    if told["reason"] is None:
        return f"{told['name']}: has not been judged yet"
    gain = "" if told["auc_gain"] is None else f", AUC gain {told['auc_gain']:+.3f}"
    return f"{told['name']}: {told['decision'] or 'failed'}{gain}: {told['reason']}"


def _outlook(test: dict[str, Any]) -> list[str]:
    """What a live test waits for, what it can still come to, and what would end it first."""
    told = test["outlook"]
    if told is None:
        return [test["reason"]] if test["status"] == "paused" else []
    lines = [told["verdict"]]
    if further := told.get("promotes", ())[1:]:  # the first is the verdict's; an older service tells no others
        lines.append(f"to promote, also: {'; '.join(further)}")
    if (needed := told.get("trials_needed")) is not None:
        lines.append(f"the evidence of a gain lacks about {needed} users who judge as those so far")
    if nearest := next(iter(told.get("ends", ())), None):
        lines.append(f"what would end it first: {nearest['words']}, {nearest['way']:.0%} of the way")
    if told["trials_left"] is not None:
        gain = told["detectable_gain"]
        finds = "no gain can still be shown" if gain is None else f"a gain of {gain:.3f} can still be shown"
        pace = f"{told['trials_per_day']:.0f} users a day settle, {told['trials_left']} more until it ends"
        lines.append(f"{pace}: {finds}")
    return lines
