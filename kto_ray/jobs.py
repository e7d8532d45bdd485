"""The controller's heavy work, as Ray tasks: each reads records and files, returns a record, and can be run again."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import ray
from ray.serve.handle import DeploymentHandle

from kto_ray.config import Config
from kto_ray.environment import cpu_compute, yield_to_serving
from kto_ray.evaluate.guard import guard_messages
from kto_ray.evaluate.records import GuardAnswer
from kto_ray.store import Store, completions, feedback
from kto_ray.types import AdapterVersion, Example, GateReport, Json, SnapshotManifest

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained and published adapter, with what its training showed."""

    version: AdapterVersion
    metrics: Json


def start(function: Callable[..., Any], config: Config, *arguments: Any) -> ray.ObjectRef:
    """Run a job as a Ray task, where training belongs. A lost one is not retried by Ray: the controller decides."""
    # Only `examine` runs a model itself; an environment of its own would make a job's child tasks start new processes.
    computes = function is examine and config.train.device == "cpu"
    environment = cpu_compute(config.train.threads) if computes else {}
    task = ray.remote(num_cpus=0, max_retries=0, runtime_env={"env_vars": environment})(function)
    selector = config.pool("train")
    return (task.options(label_selector=selector) if selector else task).remote(config, *arguments)


def read_examples(url: str, keys: tuple[str, str | None], until: float | None = None) -> list[Example]:
    """The labelled examples of one key range of completions, by the feedback recorded up to `until`."""
    from kto_ray.feedback.labels import label

    store = Store(url)
    with store.read() as tx:
        found = completions.with_feedback(tx, *keys, until)
    store.close()
    return [example for completion, events in found for example in label(completion, events)]


def snapshot(config: Config, until: float | None = None, tell: Callable[[str], None] = logger.info) -> SnapshotManifest:
    """Freeze the stored feedback into a snapshot: what was recorded up to `until` (seconds since the epoch), or all.

    Nothing newer than `newest_feedback_at` is read, however much arrives meanwhile: the same store with that time as
    `until` gives the same snapshot later. Only feedback that was withdrawn or erased since is left out then too, for
    it never trains; and an import counts from the times that its file names. `tell` hears the stages.
    """
    from kto_ray.data.snapshot import freeze
    from kto_ray.model import resolve_model

    tell("count")
    store = Store(config.database_url)
    with store.read() as tx:
        ranges = completions.key_ranges(tx, config.data.rows_per_range)
        counts = feedback.counts(tx, until=until)
    store.close()
    dropped = {"task": counts.task, "withdrawn": counts.withdrawn, "pending": counts.pending}
    read = partial(read_examples, config.database_url, until=counts.newest_at)
    return freeze(config, resolve_model(config.model), ranges, read, dropped, counts.newest_at, tell)


def train(config: Config, run: str, number: int, snapshot_uri: str, champion: AdapterVersion | None) -> Trained:
    """Train on a snapshot and publish the adapter as version `number`, to follow `champion` (None: the base model)."""
    from kto_ray.data.snapshot import load_manifest
    from kto_ray.data.stream import training_dataset
    from kto_ray.train.export import export_adapter
    from kto_ray.train.job import run_training

    manifest = load_manifest(snapshot_uri)
    start = champion if config.kto.reference == "champion" else None
    result = run_training(config, run, manifest, training_dataset(snapshot_uri, manifest), start)
    config = config.with_dtype(result.dtype) if config.train.dtype == "auto" else config  # for the manifest
    version = export_adapter(config, result.adapter_dir, number, manifest, champion, time.time())
    return Trained(version, asdict(result))


def repeat(config: Config, run: str, snapshot_uri: str, start: AdapterVersion | None) -> str:
    """Train on a snapshot again, from the adapter `start`, and publish nothing; the SHA-256 of the new weights."""
    from kto_ray.adapter import read_sound, sha256_of
    from kto_ray.data.snapshot import load_manifest
    from kto_ray.data.stream import training_dataset
    from kto_ray.train.job import run_training

    manifest = load_manifest(snapshot_uri)
    result = run_training(config, run, manifest, training_dataset(snapshot_uri, manifest), start)
    return sha256_of(read_sound(result.adapter_dir, config.serve.max_lora_rank).weights)


def examine(
    config: Config, policy: DeploymentHandle, candidate: AdapterVersion, champion: AdapterVersion | None, uri: str
) -> GateReport:
    """Ask the loaded candidate and the champion the guard prompts, then put the candidate through the gate.

    `uri` is that of the snapshot whose held-out rows the gate looks at.
    """
    answers = guard_answers(config, policy, (candidate.name, champion.name if champion else None))
    return gate(config, candidate, champion, uri, *answers)


def gate(
    config: Config,
    candidate: AdapterVersion,
    champion: AdapterVersion | None,
    snapshot_uri: str,
    candidate_answers: Sequence[GuardAnswer],
    champion_answers: Sequence[GuardAnswer],
) -> GateReport:
    """Judge a candidate on held-out feedback and on its answers to the guard prompts."""
    from kto_ray import adapter as adapter_files
    from kto_ray.data.snapshot import load_manifest, read_split
    from kto_ray.evaluate.judge import evaluate
    from kto_ray.evaluate.records import held_out
    from kto_ray.model import resolve_model

    if config.train.device == "cpu":
        yield_to_serving()
    manifest = load_manifest(snapshot_uri)
    return evaluate(
        config=config,
        adapter=candidate.name,
        snapshot=manifest.id,
        model_path=resolve_model(config.model),
        adapter_dir=adapter_files.fetch(candidate.uri, config.serve.max_lora_rank, candidate.sha256),
        champion_dir=adapter_files.fetch(champion.uri, config.serve.max_lora_rank, champion.sha256)
        if champion
        else None,
        rows=held_out(read_split(snapshot_uri, manifest, "holdout")),
        candidate=candidate_answers,
        champion=champion_answers,
        now=time.time(),
    )


def guard_answers(
    config: Config, policy: DeploymentHandle, names: tuple[str, str | None]
) -> tuple[list[GuardAnswer], list[GuardAnswer]]:
    """Ask the serving engine the guard prompts, of the candidate and of the champion (None: the base model).

    They go straight to a replica: they are no user's traffic, so nothing is logged and no arm counts them.
    """
    handle = policy.options(stream=True)
    asked = []
    for name in names:
        for i, messages in enumerate(guard_messages()):
            body = {
                "messages": [dict(m) for m in messages],
                "max_tokens": config.gate.guard_max_tokens,
                "temperature": 0.6,
                "top_p": 0.9,
                "seed": i,
            }
            asked.append((messages, handle.generate.remote(body, name or config.base_name)))
    answers = [_answer(messages, next(iter(events))) for messages, events in asked]
    half = len(answers) // 2
    return answers[:half], answers[half:]


def _answer(messages: tuple[Any, ...], text: str) -> GuardAnswer:
    response = json.loads(text)
    if "error" in response:
        raise RuntimeError(f"a guard prompt failed: {response['error']['message']}")
    choice = response["choices"][0]
    return GuardAnswer(messages, choice["message"]["content"] or "", choice["finish_reason"])
