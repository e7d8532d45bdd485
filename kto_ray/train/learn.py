"""A snapshot in, a published adapter out: what the controller and `kto-ray train` both call."""

from __future__ import annotations

import time
from dataclasses import asdict

from kto_ray.adapters.check import sha256_of
from kto_ray.adapters.files import read_sound
from kto_ray.adapters.publish import publish
from kto_ray.config import Config
from kto_ray.data.manifest import load_manifest
from kto_ray.data.stream import training_dataset
from kto_ray.data.tombstone import refuse_purged
from kto_ray.records.adapters import AdapterVersion
from kto_ray.records.training import Trained
from kto_ray.train.job import run_training


def learn(config: Config, run: str, number: int, snapshot_uri: str, champion: AdapterVersion | None) -> Trained:
    """Train on a snapshot and publish the adapter as version `number`, to follow `champion` (None: the base model).

    Raises:
        Purged: somebody whose rows the snapshot held was erased.
    """
    manifest = load_manifest(snapshot_uri)
    start = champion if config.kto.reference == "champion" else None
    result = run_training(config, run, manifest, training_dataset(snapshot_uri, manifest, config.pool("train")), start)
    refuse_purged(snapshot_uri)  # what learnt from who was erased meanwhile is not to be
    config = config.with_dtype(result.dtype) if config.train.dtype == "auto" else config  # for the manifest
    version = publish(config, result.adapter_dir, number, manifest, champion, time.time())
    figures = asdict(result)
    return Trained(version, tuple(figures.pop("history")), figures)


def repeat(config: Config, run: str, snapshot_uri: str, start: AdapterVersion | None) -> str:
    """Train on a snapshot again, from the adapter `start`, and publish nothing; the SHA-256 of the new weights."""
    manifest = load_manifest(snapshot_uri)
    result = run_training(config, run, manifest, training_dataset(snapshot_uri, manifest, config.pool("train")), start)
    return sha256_of(read_sound(result.adapter_dir, config.serve.max_lora_rank).weights)
