"""A training run as the controller wires it, importable by Ray's workers, and what came out of it."""

from __future__ import annotations

import os
from pathlib import Path

from kto_ray.config import Config
from kto_ray.data.stream import training_dataset
from kto_ray.paths import write_atomic
from kto_ray.records.snapshots import SnapshotManifest
from kto_ray.records.training import TrainResult
from kto_ray.train.job import run_training


def train(settings: Config, name: str, manifest: SnapshotManifest, uri: str) -> TrainResult:
    return run_training(settings, name, manifest, training_dataset(uri, manifest))


def train_noting_pid(settings: Config, name: str, manifest: SnapshotManifest, uri: str, note: str) -> TrainResult:
    """The same, with the id of the process that drives the run in the file `note`, for those who want to kill it."""
    write_atomic(note, str(os.getpid()).encode())
    return train(settings, name, manifest, uri)


def losses(result: TrainResult) -> list[float]:
    return [record.loss for record in result.history]


def weights(result: TrainResult) -> bytes:
    return Path(result.adapter_dir, "adapter_model.safetensors").read_bytes()
