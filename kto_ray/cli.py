"""kto-ray: the command line. Heavy imports happen inside commands, so help and config errors come at once."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from kto_ray.config import Config, ConfigError, load_config

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
feedback_app = typer.Typer(no_args_is_help=True, help="Move feedback in and out as TRL's unpaired preference format.")
app.add_typer(feedback_app, name="feedback")
data_app = typer.Typer(no_args_is_help=True, help="Look at snapshots.")
app.add_typer(data_app, name="data")
bench_app = typer.Typer(no_args_is_help=True, help="Measure speed and learning, the peer in the same run.")
app.add_typer(bench_app, name="bench")

out = Console()
err = Console(stderr=True)

ConfigFile = Annotated[str | None, typer.Option("--config", help="YAML file; see configs/.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override one field: --set a.b=c. Repeatable.")]
T = TypeVar("T")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def main() -> None:
    """Run a command; a user's mistake ends in one clear message and exit code 2, anything else in a traceback."""
    try:
        app()
    except ValueError as error:
        err.print(f"[bold red]error[/] {_plain(str(error))}", soft_wrap=True)
        sys.exit(2)


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


def _config(path: str | None, overrides: list[str] | None) -> Config:
    return load_config(path, tuple(overrides or ()))


# ---- the service


@app.command()
def serve(config: ConfigFile = None, set_: Overrides = None) -> None:
    """Run the whole service: gateway, policy replicas and the loop's controller. Ctrl-C stops it."""
    settings = _config(config, set_)
    from kto_ray.serve.app import running

    with err.status("starting Ray, vLLM, gateway and controller (about a minute on two cores)"):
        service = running(settings)
        url = service.__enter__()
    try:
        out.print(f"ready: {url}/v1  (OpenAI-compatible; state: kto-ray status --watch)")
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        err.print("stopping")
    finally:
        service.__exit__(None, None, None)


@app.command()
def demo(
    taste: Annotated[
        str, typer.Option(help="What the simulated users like: short, name, question or noise.")
    ] = "short",
    out_dir: Annotated[str, typer.Option("--out", help="Where the report goes.")] = "runs/demo",
    seed: int = 0,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the service up to chat with.")] = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
    set_: Overrides = None,
) -> None:
    """Close the loop once before your eyes: chat, thumbs, training, gate, A/B test, promotion."""
    settings = _config(config, set_)
    from kto_ray.demo.run import run_demo

    raise typer.Exit(run_demo(settings, taste, out_dir, seed, keep, as_json))


@app.command()
def status(
    watch: Annotated[bool, typer.Option("--watch", help="Refresh every second until Ctrl-C.")] = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
    set_: Overrides = None,
) -> None:
    """Where the loop stands: feedback, the round, the rollout, adapters and replicas."""
    settings = _config(config, set_)
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
    from kto_ray.serve import state

    def read(tx: Any) -> dict[str, Any]:
        return {
            "loop": state.loop(tx, config),
            "adapters": state.adapter_list(tx, config),
            "rollout": state.rollout(tx, config)["rollout"],
            "readiness": state.readiness(tx, config),
        }

    return _read(config, read)


def _status_table(told: dict[str, Any]) -> Table:
    loop, current, test = told["loop"], told["loop"]["round"], told["rollout"]
    table = Table(title="kto_ray", show_header=False, title_justify="left")
    replicas = told["readiness"]["replicas"]
    ready = "ready" if told["readiness"]["ready"] else "not ready"
    table.add_row("policy", f"{ready}, {len(replicas)} live replica(s), champion {told['readiness']['champion']}")
    for replica in replicas:
        table.add_row("", f"{replica['replica']} on {replica['node']} holds {', '.join(replica['held']) or 'the base'}")
    labels = loop["labels"]
    table.add_row("completions", str(loop["completions"]))
    table.add_row(
        "feedback",
        f"{loop['feedback']['stored']} stored, {loop['feedback']['pending']} pending; labels: "
        f"{labels['desirable']} desirable, {labels['undesirable']} undesirable, {labels['new']} new",
    )
    if current:
        progress = current["train_metrics"]
        steps = f", step {progress['step']}/{progress['steps']}" if "step" in progress else ""
        table.add_row("round", f"{current['id']}: {current['stage']}{steps}")
    for ended in loop["rounds"][-3:]:
        if ended["outcome"]:
            table.add_row("", _plain(f"{ended['id']}: {ended['outcome']}: {ended['reason'] or ''}"))
    if test:
        low, high = test["interval"]
        table.add_row(
            "rollout", f"{test['challenger']} against {test['champion']}: {test['status']} {test['stage_name']}"
        )
        table.add_row("", f"weight {test['weight']:.2f}, difference {low:+.3f} to {high:+.3f}")
    table.add_row("next", loop["next"])
    return table


# ---- the loop by hand


@app.command()
def train(
    repeat: Annotated[
        str | None, typer.Option("--repeat", help="Train this version once more and compare the bytes.")
    ] = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
    set_: Overrides = None,
) -> None:
    """Freeze the stored feedback, train one adapter on it and publish it. It is not rolled out."""
    settings = _config(config, set_)
    if repeat is not None:
        _repeat(settings, repeat, as_json)
        return
    from kto_ray import jobs
    from kto_ray.paths import Paths
    from kto_ray.serve.app import start_ray
    from kto_ray.store import adapters, open_store

    store = open_store(settings.database_url)
    with err.status("starting Ray"):
        start_ray(settings)
    with err.status("freezing the feedback into a snapshot"):
        manifest = jobs.snapshot(settings)
    uri = Paths(settings.home).snapshot(manifest.id)
    with store.write() as tx:
        adapters.insert_snapshot(tx, manifest, uri)
    with store.read() as tx:
        number = adapters.next_number(tx)
        champion = adapters.get_aliases(tx).get("champion")
    err.print(f"snapshot {manifest.id}: {manifest.n_desirable} desirable, {manifest.n_undesirable} undesirable rows")
    run = f"cli-{manifest.id}-{number}"
    trained = _with_progress(settings, run, lambda: jobs.train(settings, run, number, uri, champion))
    with store.write() as tx:
        if adapters.get(tx, trained.version.name) is None:
            adapters.insert(tx, trained.version)
    figures = {k: v for k, v in trained.metrics.items() if k != "history"}
    told = {"adapter": trained.version.name, "snapshot": manifest.id, **figures}
    _print(told, as_json)


def _repeat(settings: Config, name: str, as_json: bool) -> None:
    """Train a version again from its own snapshot, settings and seed; exit 1 when other bytes come out."""
    from kto_ray import jobs
    from kto_ray.serve.app import start_ray
    from kto_ray.store import adapters
    from kto_ray.train.export import installed_versions

    version = _read(settings, lambda tx: adapters.get(tx, name))
    uri = _read(settings, lambda tx: adapters.snapshot_uri(tx, version.snapshot or "")) if version else None
    if version is None or uri is None:
        raise ValueError(
            f"adapter {name!r} cannot be repeated: {'its snapshot' if version else 'it'} is not in the store"
        )
    same = Config.model_validate({**settings.model_dump(), **version.manifest["config"]})
    changed = {k: v for k, v in installed_versions().items() if version.manifest["versions"].get(k) != v}
    if changed:
        err.print(f"[yellow]warning[/] other library versions than then: {changed}; the bytes may differ")
    with err.status("starting Ray"):
        start_ray(same)
    run = f"repeat-{version.number}-{int(time.time())}"
    sha256 = _with_progress(same, run, lambda: jobs.repeat(same, run, uri))
    told = {"adapter": name, "sha256": version.sha256, "repeated_sha256": sha256, "same": sha256 == version.sha256}
    _print(told, as_json)
    if sha256 != version.sha256:
        raise typer.Exit(1)


def _with_progress(config: Config, run: str, work: Callable[[], Any]) -> Any:
    """Do blocking work under a progress bar that reads the run's progress file."""
    from concurrent.futures import ThreadPoolExecutor, TimeoutError

    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from kto_ray.train.job import read_progress

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeRemainingColumn(), console=err) as bar, ThreadPoolExecutor(1) as pool:
        task = bar.add_task("training: starting workers", total=None)
        future = pool.submit(work)
        while True:
            try:
                return future.result(timeout=1)
            except TimeoutError:
                if future.done():
                    raise
            if progress := read_progress(config, run):
                words = f"training: loss {progress.loss:.3f}, {progress.tokens_per_s:.0f} tok/s"
                bar.update(task, completed=progress.step, total=progress.steps, description=words)


@app.command()
def evaluate(
    adapter: Annotated[str, typer.Argument(help="The version to judge, such as policy@v1-3fa9c1.")],
    as_json: AsJson = False,
    config: ConfigFile = None,
    set_: Overrides = None,
) -> None:
    """Judge an adapter on the held-out feedback of its snapshot: KTO reward accuracy and AUC with intervals."""
    settings = _config(config, set_)
    from kto_ray import adapter as adapter_files
    from kto_ray.data.snapshot import load_manifest, read_split
    from kto_ray.evaluate.judge import reward_metrics
    from kto_ray.evaluate.logprobs import Scorer
    from kto_ray.evaluate.records import held_out
    from kto_ray.model import resolve_model
    from kto_ray.store import adapters

    version = _read(settings, lambda tx: adapters.get(tx, adapter))
    if version is None:
        known = _read(settings, lambda tx: [v.name for v in adapters.every(tx)])
        raise ValueError(f"adapter {adapter!r} is not in the store; known: {', '.join(known) or 'none'}")
    uri = _read(settings, lambda tx: adapters.snapshot_uri(tx, version.snapshot or ""))
    if uri is None:
        raise ValueError(
            f"adapter {adapter!r} has no snapshot in the store, so there is no held-out feedback to judge by"
        )
    with err.status("scoring held-out feedback under the base model and the adapter"):
        directory = adapter_files.fetch(version.uri, settings.serve.max_lora_rank, version.sha256)
        rows = held_out(read_split(uri, load_manifest(uri), "holdout"))
        scorer = Scorer(settings, resolve_model(settings.model), directory, None)
        metrics = reward_metrics(settings, scorer, rows)
    _print({"adapter": adapter, "snapshot": version.snapshot, **metrics}, as_json)


@app.command("adapters")
def adapters_(
    action: Annotated[str | None, typer.Argument(help="`show` for one version.")] = None,
    name: Annotated[str | None, typer.Argument(help="The version.")] = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
    set_: Overrides = None,
) -> None:
    """List adapter versions, or `adapters show V` for all that is known of one."""
    settings = _config(config, set_)
    from kto_ray.serve import state

    told = _read(settings, lambda tx: state.adapter_list(tx, settings))
    if action is not None:
        if action != "show" or name is None:
            raise ValueError(f"adapters takes nothing or `show VERSION`, got {action!r} {name or ''}")
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


@app.command()
def rollout(
    action: Annotated[str, typer.Argument(help="get, promote, abort, pause, resume or rollback.")] = "get",
    as_json: AsJson = False,
    config: ConfigFile = None,
    set_: Overrides = None,
) -> None:
    """Show or steer the A/B test. Changes are asked of the controller, which answers."""
    settings = _config(config, set_)
    from kto_ray.serve import state
    from kto_ray.store import open_store, rounds

    if action == "get":
        told = _read(settings, lambda tx: state.rollout(tx, settings))["rollout"]
        out.print_json(data=told, default=str)
        return
    actions = ("promote", "abort", "pause", "resume", "rollback")
    if action not in actions:
        raise ValueError(f"rollout {action!r} does not exist; use get or one of: {', '.join(actions)}")
    store = open_store(settings.database_url)
    with store.write() as tx:
        request = rounds.ask(tx, action, time.time())
    deadline = time.monotonic() + 30
    result = None
    while result is None and time.monotonic() < deadline:
        time.sleep(0.2)
        with store.read() as tx:
            result = rounds.answered(tx, request)
    _print({"action": action, "result": result or "asked; no controller has answered yet, is the service up?"}, as_json)
    if result is None or result.startswith("refused"):
        raise typer.Exit(1)


# ---- feedback


@feedback_app.command("import")
def feedback_import(
    file: Annotated[Path, typer.Argument(help="JSON lines (.gz too): prompt, completion, label.")],
    as_json: AsJson = False,
    config: ConfigFile = None,
    set_: Overrides = None,
) -> None:
    """Import judgements in TRL's unpaired preference format. Importing a file twice adds nothing."""
    settings = _config(config, set_)
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
                    log.record(tx, thumb)
                    added += 1
    _print({"rows": len(rows), "imported": added, "already_there": len(rows) - added}, as_json)


@feedback_app.command("export")
def feedback_export(
    file: Annotated[Path, typer.Argument(help="Where to write JSON lines.")],
    as_json: AsJson = False,
    config: ConfigFile = None,
    set_: Overrides = None,
) -> None:
    """Export all labelled examples in TRL's unpaired preference format."""
    settings = _config(config, set_)
    from kto_ray.feedback.files import write_unpaired
    from kto_ray.jobs import read_examples
    from kto_ray.store import completions

    ranges = _read(settings, lambda tx: completions.key_ranges(tx, 16))
    total = 0
    with file.open("w", encoding="utf-8") as target:
        for keys in ranges:
            examples = read_examples(settings.database_url, keys)
            write_unpaired(examples, target)
            total += len(examples)
    _print({"exported": total, "file": str(file)}, as_json)


# ---- health of the set-up


@app.command()
def doctor(as_json: AsJson = False, config: ConfigFile = None, set_: Overrides = None) -> None:
    """Check the set-up: versions, model, store, port, threads."""
    settings = _config(config, set_)
    from kto_ray.doctor import examine

    checks = examine(settings)
    if as_json:
        out.print_json(data=[dataclasses.asdict(check) for check in checks])
    else:
        table = Table("check", "", "found")
        for check in checks:
            table.add_row(check.name, "[green]ok[/]" if check.ok else "[red]wrong[/]", _plain(check.found))
        out.print(table)
    raise typer.Exit(0 if all(check.ok for check in checks) else 1)


# ---- snapshots


@data_app.command("show")
def data_show(
    snapshot: Annotated[str, typer.Argument(help="A snapshot's id, as `kto-ray adapters` shows it.")],
    rows: Annotated[int, typer.Option(min=0, help="Training rows to look at.")] = 3,
    as_json: AsJson = False,
    config: ConfigFile = None,
    set_: Overrides = None,
) -> None:
    """What a snapshot holds: counts, ratio, weights, what was left out, hashes, and a look at some rows."""
    settings = _config(config, set_)
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


@app.command()
def lineage(
    name: Annotated[str, typer.Argument(help="A completion id, a user, or an adapter version.")],
    config: ConfigFile = None,
    set_: Overrides = None,
) -> None:
    """From a thumb to every snapshot, adapter and arm it touched, and back."""
    settings = _config(config, set_)
    from kto_ray.lineage import lineage as trace

    out.print_json(data=_read(settings, lambda tx: trace(tx, settings, name)), default=str)


# ---- benchmarks


@bench_app.command("train")
def bench_train(
    data: Annotated[str, typer.Option(help="A file in TRL's unpaired preference format.")],
    steps: Annotated[int, typer.Option(min=1, help="Measured steps of each process.")] = 6,
    repeats: Annotated[int, typer.Option(min=1, help="Processes of each variant; medians count.")] = 3,
    out_dir: Annotated[str, typer.Option("--out")] = "runs/bench",
    as_json: AsJson = False,
    config: ConfigFile = None,
    set_: Overrides = None,
) -> None:
    """Tokens a second of our KTO step and of TRL's KTOTrainer, with its defaults and at its best."""
    settings = _config(config, set_)
    from kto_ray.bench import train as bench

    report = bench.bench_train(settings, data, steps, repeats, out_dir, lambda words: err.print(f"  {words}"))
    if as_json:
        out.print_json(data=report)
        return
    out.print(bench.table(report))
    out.print(f"written to {out_dir}/train.json")


# ---- small


def _read(config: Config, query: Callable[[Any], T]) -> T:
    from kto_ray.store import open_store

    store = open_store(config.database_url)
    with store.read() as tx:
        result = query(tx)
    store.close()
    return result


def _print(told: dict[str, Any], as_json: bool) -> None:
    if as_json:
        out.print_json(json.dumps(told, default=str))
        return
    for key, value in told.items():
        out.print(f"{key}: {value:.4g}" if isinstance(value, float) else _plain(f"{key}: {value}"), soft_wrap=True)


__all__ = ["ConfigError", "app", "main"]
