"""A training run as the controller wires it, importable by Ray's workers."""

from __future__ import annotations

from kto_ray.config import Config
from kto_ray.data.stream import training_dataset
from kto_ray.train.job import run_training
from kto_ray.train.records import TrainResult
from kto_ray.types import SnapshotManifest


def train(settings: Config, name: str, manifest: SnapshotManifest, uri: str) -> TrainResult:
    return run_training(settings, name, manifest, training_dataset(uri, manifest))
