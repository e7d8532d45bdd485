"""The loop by hand: train an adapter, judge it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kto_ray.cli.common import (
    LEARN,
    AsJson,
    ConfigFile,
    Overrides,
    err,
    ray_up,
    read_store,
    settings_of,
    step,
    tell,
    warn_of_emulation,
)
from kto_ray.config import Config

if TYPE_CHECKING:
    from kto_ray.records.snapshots import SnapshotManifest
    from kto_ray.records.training import Trained

app = typer.Typer()


@app.command(rich_help_panel=LEARN)
def train(
    repeat: Annotated[
        str | None, typer.Option("--repeat", help="Train this version once more and compare the bytes.")
    ] = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
    set_: Overrides = None,
) -> None:
    """Freeze the stored feedback, train one adapter on it and publish it. It is not rolled out."""
    settings = settings_of(config, set_)
    warn_of_emulation(settings)
    if repeat is not None:
        _repeat(settings, repeat, as_json)
        return
    from kto_ray.data.seal import seal
    from kto_ray.evaluate.suites import guard_items
    from kto_ray.paths import Paths
    from kto_ray.store import store_of
    from kto_ray.train.targets import check_targets

    store_of(settings).close()  # migrates, and fails here, before anything heavy
    check_targets(settings)
    if settings.embedded:  # elsewhere the suites lie where jobs run
        guard_items(settings.gate)
    freezing = "freezing the feedback into a snapshot"
    with ray_up(settings):
        with step(freezing) as now:
            manifest = seal(settings, tell=now)
        trained = train_on(settings, manifest)
    plot = Paths(settings.home).training_plot(_run(manifest, trained.version.number))
    tell({"adapter": trained.version.name, "snapshot": manifest.id, **trained.figures, "plot": plot}, as_json)


def train_on(settings: Config, manifest: SnapshotManifest) -> Trained:
    """Train one adapter on a sealed snapshot, under a progress bar, and publish and record both. Ray must be up."""
    from kto_ray.loop.moves import Change, KeepSnapshot, perform
    from kto_ray.paths import Paths
    from kto_ray.records.adapters import CHAMPION
    from kto_ray.records.trainings import ended_run
    from kto_ray.store import adapters, store_of
    from kto_ray.train.learn import learn

    store, began = store_of(settings), time.time()
    snapshot = KeepSnapshot(manifest, Paths(settings.home).snapshot(manifest.id))
    with store.write() as tx:
        perform(tx, Change(None, (snapshot,)), began)
    with store.read() as tx:
        number = adapters.next_number(tx)
        champion = adapters.get(tx, adapters.aliases(tx, settings.base_name)[CHAMPION])
    err.print(f"snapshot {manifest.id}: {manifest.n_desirable} desirable, {manifest.n_undesirable} undesirable rows")
    run = _run(manifest, number)
    trained: Trained = _with_progress(settings, run, lambda: learn(settings, run, number, snapshot.uri, champion))
    now = time.time()
    with store.write() as tx:
        perform(tx, Change(None, (ended_run(run, trained, began, now), trained.version)), now)
    store.close()
    return trained


def _run(manifest: SnapshotManifest, number: int) -> str:
    return f"cli-{manifest.id}-{number}"


def _repeat(settings: Config, name: str, as_json: bool) -> None:
    """Train a version again from its own snapshot, settings and seed; exit 1 when other bytes come out."""
    from kto_ray.adapters.publish import as_trained, installed_versions
    from kto_ray.store import adapters, snapshots
    from kto_ray.train.learn import repeat

    version = read_store(settings, lambda tx: adapters.get(tx, name))
    uri = read_store(settings, lambda tx: snapshots.uri_of(tx, version.snapshot)) if version else None
    if version is None or uri is None:
        raise ValueError(
            f"adapter {name!r} cannot be repeated: {'its snapshot' if version else 'it'} is not in the store"
        )
    same = as_trained(settings, version)
    changed = {k: v for k, v in installed_versions().items() if version.manifest["versions"].get(k) != v}
    if changed:
        err.print(f"[yellow]warning[/] other library versions than then: {changed}; the bytes may differ")
    start = read_store(settings, lambda tx: adapters.get(tx, version.reference))  # None where that is the base model
    run = f"repeat-{version.number}-{int(time.time())}"
    with ray_up(same):
        sha256 = _with_progress(same, run, lambda: repeat(same, run, uri, start))
    told = {"adapter": name, "sha256": version.sha256, "repeated_sha256": sha256, "same": sha256 == version.sha256}
    tell(told, as_json)
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


@app.command(rich_help_panel=LEARN)
def evaluate(
    adapter: Annotated[str, typer.Argument(help="The version to judge, such as policy@v1-3fa9c1.")],
    as_json: AsJson = False,
    config: ConfigFile = None,
    set_: Overrides = None,
) -> None:
    """Judge an adapter on the held-out feedback of its snapshot: KTO reward accuracy and AUC with intervals."""
    settings = settings_of(config, set_)
    from kto_ray.adapters import files as adapter_files
    from kto_ray.model import resolve_model
    from kto_ray.store import adapters, snapshots

    version = read_store(settings, lambda tx: adapters.get(tx, adapter))
    if version is None:
        known = read_store(settings, lambda tx: [v.name for v in adapters.every(tx)])
        raise ValueError(f"adapter {adapter!r} is not in the store; known: {', '.join(known) or 'none'}")
    uri = read_store(settings, lambda tx: snapshots.uri_of(tx, version.snapshot))
    if uri is None:
        raise ValueError(
            f"adapter {adapter!r} has no snapshot in the store, so there is no held-out feedback to judge by"
        )
    with step("scoring held-out feedback under the base model and the adapter"):
        from kto_ray.data.manifest import load_manifest
        from kto_ray.data.snapshot import read_split
        from kto_ray.evaluate.logprobs import Scorer
        from kto_ray.evaluate.measure import reward_metrics
        from kto_ray.records.evaluation import held_out

        rows = held_out(read_split(uri, load_manifest(uri), "holdout"))
        with adapter_files.fetched(version, settings.serve.max_lora_rank, settings.adapters.signing_keys) as directory:
            scorer = Scorer(settings, resolve_model(settings.model), directory, None)
        metrics = reward_metrics(settings, scorer, rows, settings.base_name)
    tell({"adapter": adapter, "snapshot": version.snapshot, **metrics}, as_json)
