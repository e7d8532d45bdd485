"""The only place that knows directory and file names. A home is an fsspec URI: a local directory or s3://bucket/prefix."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

import fsspec
from fsspec import AbstractFileSystem

SNAPSHOT_MANIFEST = "manifest.json"
SNAPSHOT_TOMBSTONE = "purged.json"
SNAPSHOT_ROWS = "rows.parquet"  # the index of its rows
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_MANIFEST = "manifest.json"
fsspec.register_implementation(
    "s3", "kto_ray.s3.S3", clobber=True, errtxt="object storage needs s3fs; pip install 'kto-ray[s3]'"
)
AWAY_OF_ARROW = re.compile(
    r"AWS Error (NETWORK_CONNECTION|SLOW_DOWN|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|REQUEST_TIMEOUT)"
    r"|AWS Error .*HTTP status (5\d\d|429|408)"
)
USERINFO = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*://)[^/?#\s'\"]*@")
PARAMETER = re.compile(
    r"([?&][\w.-]*(?:password|passwd|secret|token|key|credential|signature)[\w.-]*=)[^&\s'\"]+", re.IGNORECASE
)


class StorageAway(OSError):
    """Nobody answers there, or nothing says who asks. What was asked for may be there, or not."""


def is_away(error: BaseException) -> bool:
    """Whether the way to the storage failed, and not what was asked of it: ours, or pyarrow's, which Ray Train uses. An
    error that came through several processes is known by its words alone."""
    words = f"{type(error).__name__}: {error}"
    return StorageAway.__name__ in words or AWAY_OF_ARROW.search(words) is not None


def reach(uri: str) -> None:
    """Make sure that a storage answers, before hours of work for it.

    Raises:
        StorageAway: it does not.
    """
    fs, path = filesystem(uri)
    fs.exists(path)


def join(base: str, *parts: str) -> str:
    """Join URI parts with single slashes."""
    return "/".join([base.rstrip("/"), *(p.strip("/") for p in parts)])


def filesystem(uri: str) -> tuple[AbstractFileSystem, str]:
    """The fsspec filesystem of a URI and the path within it. What cannot be reached raises OSError, as disks do."""
    fs, path = fsspec.core.url_to_fs(uri)
    return cast(AbstractFileSystem, fs), str(path)


def write_atomic(uri: str, data: bytes) -> None:
    """Write a file so that a reader sees all of it or nothing, and durably: rename locally, a single put on object
    stores. What could not be written to the end, since the disk is full, leaves nothing."""
    fs, path = filesystem(uri)
    if not is_local(uri):
        fs.pipe_file(path, data)
        return
    import os

    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    for named in (folder, os.path.dirname(folder)):  # a power cut must take no name that the store goes on to hold
        entry = os.open(named, os.O_RDONLY)
        try:
            os.fsync(entry)
        finally:
            os.close(entry)


def append(uri: str, data: bytes) -> None:
    """Add to a file; it is on the disk when this returns. An object store writes the whole object anew."""
    fs, path = filesystem(uri)
    if not is_local(uri):
        fs.pipe_file(path, (fs.cat_file(path) if fs.exists(path) else b"") + data)
        return
    import os

    with open(path, "ab") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def without_passwords(text: str) -> str:
    """A text with the passwords in its URIs hidden: before the host, and among the parameters."""
    return PARAMETER.sub(r"\1***", USERINFO.sub(r"\1***@", text))


def make_private(directory: str) -> None:
    """Make a directory that only this user enters; one that is there stays as it is."""
    import os

    if not os.path.isdir(directory):
        os.makedirs(directory, mode=0o700, exist_ok=True)


def is_local(uri: str) -> bool:
    return "://" not in uri or uri.startswith("file://")


@dataclass(frozen=True, slots=True)
class Paths:
    """Names under one home."""

    home: str

    def snapshots(self) -> str:
        return join(self.home, "snapshots")

    def snapshot(self, snapshot: str) -> str:
        return join(self.snapshots(), snapshot)

    def staging(self) -> str:
        """Snapshots that are being written, and what killed freezes left."""
        return join(self.home, "staging")

    def snapshot_staging(self, key: str) -> str:
        return join(self.staging(), key)

    def archives(self) -> str:
        """The texts of old completions, which retention took out of the store."""
        return join(self.home, "archives")

    def archive(self, name: str) -> str:
        return join(self.archives(), f"{name}.parquet")

    def training(self) -> str:
        """Ray Train's storage: one folder a run, checkpoints inside."""
        return join(self.home, "training")

    def run(self, run: str) -> str:
        return join(self.training(), run)

    def run_progress(self, run: str) -> str:
        """Where a running training stands."""
        return join(self.training(), run, "progress.json")

    def run_placement(self, run: str) -> str:
        """Ray's id of what the run's workers hold."""
        return join(self.training(), run, "placement_group.txt")

    def run_metrics(self, run: str) -> str:
        """A JSON line a step."""
        return join(self.training(), run, "metrics.jsonl")

    def run_events(self, run: str) -> str:
        """TensorBoard knows an event file by `tfevents` in its name."""
        return join(self.training(), run, "tensorboard", f"events.out.tfevents.0.{run}")

    def training_plot(self, run: str) -> str:
        return join(self.reports(), f"{run}-training.svg")

    def references(self) -> str:
        """Log-probabilities under reference models, a folder each."""
        return join(self.home, "references")

    def adapter(self, name: str) -> str:
        return join(self.home, "adapters", name.replace("@", "-"))

    def reports(self) -> str:
        return join(self.home, "reports")
