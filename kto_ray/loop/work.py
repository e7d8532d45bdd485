"""The loop's heavy work, as Ray tasks: each reads records and files, returns a record, and can be run again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from typing import Any

import ray
from ray.serve.handle import DeploymentHandle
from sqlalchemy.exc import SQLAlchemyError

from kto_ray.cluster import cpu_compute, yield_to_serving
from kto_ray.config import Config
from kto_ray.records.adapters import AdapterVersion
from kto_ray.records.completions import Json
from kto_ray.records.evaluation import GateReport, GuardAnswer, HeldOut, Thumbed
from kto_ray.records.snapshots import SnapshotManifest
from kto_ray.records.training import Trained

log = logging.getLogger(__name__)


def start(function: Callable[..., Any], config: Config, *arguments: Any) -> ray.ObjectRef:
    """Run a job as a Ray task, where training belongs. A lost one is not retried by Ray: the controller decides."""
    # Only `examine` runs a model itself; an environment of its own would make a job's child tasks start new processes.
    computes, device = function is examine, config.train.device
    environment = cpu_compute(config.train.threads) if computes and device == "cpu" else {}
    gpus = config.train.gpus_per_worker if computes and device == "gpu" else 0
    task = ray.remote(num_cpus=0, num_gpus=gpus, max_retries=0, runtime_env={"env_vars": environment})(function)
    selector = config.pool("train")
    return (task.options(label_selector=selector) if selector else task).remote(config, *arguments)


def cancel(job: ray.ObjectRef) -> None:
    """End a job whose result nobody wants any more."""
    ray.cancel(job, force=True)


def clear(config: Config, run: str) -> None:
    """Take back what the workers of a training hold that was ended, or whose process was killed."""
    from kto_ray.train.job import free_left_workers

    free_left_workers(config, run)


def seal(config: Config) -> SnapshotManifest:
    """Seal the stored feedback into a snapshot, if it can be trained on and its adapter be judged at all."""
    from kto_ray.data import seal
    from kto_ray.evaluate.suites import guard_items
    from kto_ray.train.targets import check_targets

    check_targets(config)
    guard_items(config.gate)
    return seal.seal(config)


def learn(
    config: Config, run: str, number: int, snapshot_uri: str, champion: AdapterVersion | None, over: Json
) -> Trained:
    """Train on a snapshot, by the `kto` section and what the candidate sets `over` it, and publish the adapter as
    version `number`."""
    from kto_ray.train import learn

    return learn.learn(config.with_kto(over), run, number, snapshot_uri, champion)


def examine(
    config: Config,
    policy: DeploymentHandle,
    candidate: AdapterVersion,
    champion: AdapterVersion | None,
    uri: str,
    over: Json,
) -> GateReport:
    """Ask the loaded candidate and the champion the guard prompts, then put the candidate through the gate.

    `uri` is that of the snapshot whose held-out rows the gate looks at, `over` what the candidate sets over `kto`.
    """
    from kto_ray.evaluate.ask import guard_answers

    answers = guard_answers(config, policy, (candidate.name, champion.name if champion else None))
    return gate(config.with_kto(over), candidate, champion, uri, *answers)


def gate(
    config: Config,
    candidate: AdapterVersion,
    champion: AdapterVersion | None,
    snapshot_uri: str,
    candidate_answers: Sequence[GuardAnswer],
    champion_answers: Sequence[GuardAnswer],
) -> GateReport:
    """Judge a candidate on held-out feedback and on its answers to the guard prompts."""
    from kto_ray.adapters.files import fetched, sweep
    from kto_ray.data.manifest import load_manifest
    from kto_ray.data.snapshot import read_split
    from kto_ray.evaluate.measure import evaluate
    from kto_ray.evaluate.opinion import opinion
    from kto_ray.model import resolve_model
    from kto_ray.records.evaluation import held_out

    if config.train.device == "cpu":
        yield_to_serving()
    manifest = load_manifest(snapshot_uri)
    rows = held_out(read_split(snapshot_uri, manifest, "holdout"))
    rank, keys = config.serve.max_lora_rank, config.adapters.signing_keys
    sweep([version for version in (candidate, champion) if version])  # where no replica ever starts, nobody else does
    with ExitStack() as copies:
        return evaluate(
            config=config,
            adapter=candidate.name,
            snapshot=manifest.id,
            model_path=resolve_model(config.model),
            adapter_dir=copies.enter_context(fetched(candidate, rank, keys)),
            champion_dir=copies.enter_context(fetched(champion, rank, keys)) if champion else None,
            rows=rows,
            candidate=candidate_answers,
            champion=champion_answers,
            now=time.time(),
            served_as=champion.name if champion else config.base_name,
            opinion=opinion(config.gate, candidate_answers, champion_answers, _read(config, rows)),
        )


def _read(config: Config, rows: Sequence[HeldOut]) -> Sequence[Thumbed]:
    """The held-out rows that a judge rates, as texts."""
    if config.gate.judge is None or config.gate.judge.rows == 0:
        return ()
    from kto_ray.data.said import thumbed
    from kto_ray.model import resolve_model
    from kto_ray.store import store_of
    from kto_ray.store.database import STARTED_S, CannotOpen
    from kto_ray.store.faults import first_line

    try:
        with closing(store_of(config, wait_s=STARTED_S)) as store, store.read() as tx:
            return thumbed(tx, config, resolve_model(config.model), rows, config.gate.judge.rows)
    except (CannotOpen, SQLAlchemyError) as error:  # a figure that decides nothing is absent, as from a silent judge
        log.warning("the judge rates no held-out answers, for the store is away: %s", first_line(error))
        return ()
