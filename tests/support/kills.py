"""What a killed training run needs: nodes to lose, one that starts it again as the controller does, and the kills."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import ray
from ray.cluster_utils import Cluster

from kto_ray.config import Config
from kto_ray.loop import work
from kto_ray.records.snapshots import SnapshotManifest
from kto_ray.records.training import TrainProgress, TrainResult
from kto_ray.train.job import RECORD_FILE, read_progress
from tests.support.training import train_noting_pid

POOL = {"pool": "train"}


@dataclass(frozen=True)
class Sealed:
    manifest: SnapshotManifest
    uri: str
    lengths: list[int]  # tokens of every training row, in the snapshot's order


@dataclass(frozen=True)
class Nodes:
    """A head that computes nothing and two nodes of the training pool, all on this machine."""

    cluster: Cluster

    def add(self) -> None:
        self.cluster.add_node(num_cpus=4, labels=POOL, node_ip_address="127.0.0.1")

    def replace(self, pid: int) -> None:
        """Kill the node that runs the process `pid`, all its processes at once, and add a fresh one."""
        raylet = psutil.Process(pid).ppid()
        (node,) = (n for n in self.cluster.worker_nodes if n.all_processes["raylet"][0].process.pid == raylet)
        self.cluster.remove_node(node, allow_graceful=False)
        self.add()


@dataclass
class Run:
    """A training run, started again whenever its driver dies or gives up, as the controller does."""

    settings: Config
    name: str
    sealed: Sealed
    starts: int = 0
    errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.note = Path(self.settings.home, f"{self.name}.pid")
        self._start()

    def _start(self) -> None:
        arguments = (self.name, self.sealed.manifest, self.sealed.uri, str(self.note))
        self.ref = work.start(train_noting_pid, self.settings, *arguments)
        self.starts += 1

    @property
    def driver(self) -> int:
        return int(self.note.read_text())

    def poll(self, timeout_s: float) -> TrainResult | None:
        """Its result, if it is done."""
        if not ray.wait([self.ref], timeout=timeout_s)[0]:
            return None
        try:
            result: TrainResult = ray.get(self.ref)
        except ray.exceptions.RayError as error:
            self.errors.append(f"{type(error).__name__}: {error}")
            self._start()
            return None
        return result

    def past(self, step: int, killed_at: float) -> TrainProgress:
        """Its progress, once it has been at `step` or later since `killed_at`."""
        deadline = time.monotonic() + 180
        while True:
            progress = read_progress(self.settings, self.name)
            if progress is not None and progress.at > killed_at and progress.step >= step:
                return progress
            assert self.poll(0.002) is None, f"the run ended before step {step}"
            assert time.monotonic() < deadline, f"{progress}, waiting for step {step}; {self.errors}"

    def result(self) -> TrainResult:
        deadline = time.monotonic() + 240
        while (result := self.poll(1)) is None:
            assert time.monotonic() < deadline, f"{read_progress(self.settings, self.name)}; {self.errors}"
        return result


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def actors(name: str) -> list[int]:
    """The processes of this machine that run Ray's actor `name`."""
    titles = ((p.pid, p.info["cmdline"]) for p in psutil.process_iter(["cmdline"]))
    return [pid for pid, title in titles if title and title[0].startswith(f"ray::{name}")]


def strike(kind: str, run: Run, progress: TrainProgress, nodes: Nodes) -> None:
    if kind == "worker":
        kill(progress.pid)
    elif kind == "other worker":
        (other,) = (pid for pid in actors("RayTrainWorker") if pid != progress.pid)
        kill(other)
    elif kind == "driver":
        kill(run.driver)
    elif kind == "stream":
        for pid in actors("SplitCoordinator"):
            kill(pid)
    elif kind == "node of the worker":
        nodes.replace(progress.pid)
    else:
        assert kind == "node of the driver", kind
        nodes.replace(run.driver)


def saved_step(run: Run) -> int:
    """The step of the run's last checkpoint that counts."""
    record = Path(run.settings.home, "training", run.name, RECORD_FILE)
    latest = json.loads(record.read_text())["latest_checkpoint_result"] if record.exists() else None
    return int(latest["metrics"]["step"]) if latest else 0
