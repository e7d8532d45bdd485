"""The training job: Ray Train around the worker's loop, restarted from its last checkpoint when a worker dies."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
from statistics import fmean
from typing import TYPE_CHECKING, Any

from kto_ray.cluster import cpu_compute
from kto_ray.config import Config
from kto_ray.paths import Paths, filesystem, is_local, join, write_atomic
from kto_ray.records.adapters import AdapterVersion
from kto_ray.records.snapshots import SnapshotManifest
from kto_ray.records.training import (
    TrainingDiverged,
    TrainingFailed,
    TrainJob,
    TrainOutcome,
    TrainProgress,
    TrainResult,
)
from kto_ray.train import track

if TYPE_CHECKING:
    from ray.data import Dataset
    from ray.train import RunConfig, ScalingConfig

logger = logging.getLogger(__name__)

RECORD_FILE = "checkpoint_manager_snapshot.json"  # Ray Train's name for the list of a run's checkpoints
KEPT_CHECKPOINTS = 2


def run_training(
    config: Config, run_name: str, snapshot: SnapshotManifest, rows: Dataset, start: AdapterVersion | None = None
) -> TrainResult:
    """Train one adapter on a sealed snapshot, and wait for it. Call it inside a Ray task.

    `start` is the adapter that policy and reference start from; None where that is the base model.

    `rows` are the snapshot's training rows in its order. Each worker reads all of them and takes its own (RowBatches).
    They are handed to the workers as iterators made here and not by TorchTrainer(datasets=...): Ray runs a task in its
    parent's environment, so reading under a training worker would start new processes at every restart.

    Dead workers are restarted from the last checkpoint. Called again with the same run name after this process died,
    it goes on from there too: Ray Train restores a run that has the same name and storage path.

    Raises:
        ValueError: the snapshot holds one class only, or was sealed for another model, or a package is missing here.
        TrainingDiverged: the loss or its gradient became NaN or infinite.
        TrainingFailed: the workers failed more often than train.max_failures.
    """
    check_machine(config)
    check_snapshot(config, snapshot)
    status: track.Status = "FAILED"
    try:
        result = _fit(config, run_name, snapshot, rows, start)
        status = "FINISHED"
    finally:
        track.publish(config, run_name, snapshot.id, status)
    return result


def _fit(
    config: Config, run_name: str, snapshot: SnapshotManifest, rows: Dataset, start: AdapterVersion | None
) -> TrainResult:
    from ray.train import TrainingFailedError
    from ray.train.torch import TorchTrainer

    from kto_ray.train.failure import explain

    free_left_workers(config, run_name)
    _clear_torn_run(config, run_name)
    streams = [rows.streaming_split(1)[0] for _ in range(config.train.workers)]
    trainer = TorchTrainer(
        _train_on_worker,
        train_loop_config={
            "job": _job(config, run_name, snapshot, start),
            "streams": streams,
            "placement_uri": _absolute(Paths(config.home).run_placement(run_name)),
        },
        scaling_config=_scaling(config),
        run_config=_run_config(config, run_name),
    )
    try:
        result = trainer.fit()
    except TrainingFailedError as error:
        raise TrainingFailed(explain(error, config.train.max_failures)) from error
    outcome = result.return_value
    assert isinstance(outcome, TrainOutcome), "the worker's loop returns its outcome"
    if outcome.failure is not None:
        raise TrainingDiverged(outcome.failure)
    assert result.checkpoint is not None, "the last step is always saved"
    checkpoint = os.path.basename(result.checkpoint.path)
    return summarize(outcome, join(_storage(config), run_name, checkpoint, "checkpoint"))


def read_progress(config: Config, run_name: str) -> TrainProgress | None:
    """How far a run is, or None before its first step."""
    fs, path = filesystem(Paths(config.home).run_progress(run_name))
    if not fs.exists(path):
        return None
    return TrainProgress(**json.loads(fs.cat_file(path)))


def check_machine(config: Config) -> None:
    """Refuse what this machine, one of those that train, lacks a package for.

    Raises:
        ValueError: names the setting, the package and what installs it.
    """
    train = config.train
    needs = {
        "bitsandbytes": ("qlora", "train.quantize", train.quantize, "none", train.quantize == "nf4"),
        "mlflow": ("mlflow", "train.mlflow_uri", train.mlflow_uri, "null", train.mlflow_uri is not None),
    }
    for package, (extra, field, value, without, needed) in needs.items():
        if needed and importlib.util.find_spec(package) is None:
            raise ValueError(
                f"{field} is {value!r}, but the package {package} is not installed on {os.uname().nodename}, which "
                f"trains; pip install 'kto-ray[{extra}]' there, or set {field}: {without}"
            )


def check_snapshot(config: Config, snapshot: SnapshotManifest) -> None:
    """Refuse what KTO cannot learn from.

    Raises:
        ValueError: one class only, or another base model's tokens.
    """
    counts = {"desirable": snapshot.n_desirable, "undesirable": snapshot.n_undesirable}
    for missing, other in (("desirable", "undesirable"), ("undesirable", "desirable")):
        if counts[missing] == 0:
            raise ValueError(
                f"snapshot {snapshot.id} holds {counts[other]} {other} rows and no {missing} one: KTO needs both; "
                f"collect thumbs {'up' if missing == 'desirable' else 'down'} and seal a new snapshot"
            )
    if snapshot.model != config.model.id:
        raise ValueError(
            f"snapshot {snapshot.id} holds tokens of {snapshot.model!r}, but model.id is {config.model.id!r}: "
            "seal a new snapshot for this model"
        )


def summarize(outcome: TrainOutcome, adapter_dir: str) -> TrainResult:
    """The figures of a finished run."""
    history = outcome.history
    late = history[-max(1, len(history) // 4) :]
    seconds = sum(step.seconds for step in history)
    return TrainResult(
        adapter_dir=adapter_dir,
        loss_first=history[0].loss,
        loss_last=fmean(step.loss for step in late),
        kl_last=fmean(step.kl for step in late),
        rewards_desirable=_mean_of_some([step.reward_desirable for step in late]),
        rewards_undesirable=_mean_of_some([step.reward_undesirable for step in late]),
        tokens_per_s=sum(step.tokens for step in history) / seconds,
        train_s=seconds,
        steps=len(history),
        history=history,
        dtype=outcome.dtype,
    )


def _mean_of_some(values: list[float | None]) -> float:
    known = [value for value in values if value is not None]
    return fmean(known) if known else 0.0


def free_left_workers(config: Config, run_name: str) -> None:
    """Take back what the workers of a killed driver hold, and end any that still runs. Ray Train itself does so only
    where Ray's dashboard runs; without it every killed driver would cost the cluster a worker's CPUs for good."""
    import ray.util
    from ray.util.placement_group import PlacementGroup, PlacementGroupID

    fs, path = filesystem(Paths(config.home).run_placement(run_name))
    if fs.exists(path):
        group = PlacementGroupID(bytes.fromhex(fs.cat_file(path).decode()))
        ray.util.remove_placement_group(PlacementGroup(group))  # no matter if it is gone already


def _clear_torn_run(config: Config, run_name: str) -> None:
    """Let a run begin anew whose record of checkpoints a kill cut short: Ray Train writes it in place, without a
    rename, and would refuse the run for ever."""
    folder = join(_storage(config), run_name)
    fs, record = filesystem(join(folder, RECORD_FILE))
    if not fs.exists(record):
        return
    try:
        json.loads(fs.cat_file(record))
    except ValueError as error:
        logger.warning("training %s begins anew, its record of checkpoints was cut short: %s", run_name, error)
        fs.rm(filesystem(folder)[1], recursive=True)


def _train_on_worker(loop_config: dict[str, Any]) -> TrainOutcome:
    import ray.train
    import ray.util

    rank = ray.train.get_context().get_world_rank()
    if rank == 0:
        group = ray.util.get_current_placement_group()
        write_atomic(loop_config["placement_uri"], group.id.hex().encode())

    from kto_ray.train.kto import train_on_worker

    return train_on_worker(loop_config["job"], loop_config["streams"][rank])


def _job(config: Config, run_name: str, snapshot: SnapshotManifest, start: AdapterVersion | None) -> TrainJob:
    return TrainJob(
        model=config.model,
        kto=config.kto,
        train=config.train,
        dtype=config.train_dtype,
        rows=snapshot.n_desirable + snapshot.n_undesirable,
        micro_batch=snapshot.micro_batch * config.train.micro_batches,
        desirable_weight=snapshot.desirable_weight,
        undesirable_weight=snapshot.undesirable_weight,
        max_length=snapshot.max_length,
        seed=snapshot.seed,
        home=_absolute(config.home),
        run=run_name,
        start=start,
        signing_keys=config.adapters.signing_keys,
    )


def _scaling(config: Config) -> ScalingConfig:
    from ray.train import ScalingConfig

    gpu = config.train.device == "gpu"
    resources: dict[str, float] = {"CPU": config.train.cpus_per_worker}
    if gpu:
        resources["GPU"] = config.train.gpus_per_worker
    return ScalingConfig(
        num_workers=config.train.workers,
        use_gpu=gpu,
        resources_per_worker=resources,
        label_selector=config.pool("train") or None,
    )


def _run_config(config: Config, run_name: str) -> RunConfig:
    from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig

    environment = cpu_compute(config.train.threads) if config.train.device == "cpu" else {}
    return RunConfig(
        name=run_name,
        storage_path=_storage(config),
        failure_config=FailureConfig(max_failures=config.train.max_failures),
        checkpoint_config=CheckpointConfig(num_to_keep=KEPT_CHECKPOINTS),
        logging_config=LoggingConfig(log_level="WARNING"),
        worker_runtime_env={"env_vars": environment},
    )


def _storage(config: Config) -> str:
    return _absolute(Paths(config.home).training())


def _absolute(uri: str) -> str:
    # Ray Train's workers change their working directory.
    return os.path.abspath(uri.removeprefix("file://")) if is_local(uri) else uri
