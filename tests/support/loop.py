"""The loop without Ray: jobs whose results are made up, and a store that has what they need."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from kto_ray.loop.step import Loop
from kto_ray.records.adapters import AdapterVersion
from kto_ray.records.evaluation import GateDecision, GateReport
from kto_ray.records.replicas import ReplicaReport
from kto_ray.records.rounds import Stage
from kto_ray.records.training import Trained
from kto_ray.store import Store, completions, feedback, replicas, rounds
from tests.support.provenance import completion, seal, thumb

V1 = "policy@v1-aaaaaa"


class Jobs:
    """Results in place of Ray tasks: each is there at the next tick."""

    def __init__(self, folder: Path) -> None:
        self.manifest, _ = seal(folder, {"train": [("c1", "ann")]}, 1)
        self.started: list[str] = []
        self.results: dict[str, Any] = {
            "seal": self.manifest,
            "learn": Trained(
                AdapterVersion(V1, 1, 1.0, "uri", "0" * 64, self.manifest.id, None, "policy@base", 8),
                ({"step": 1, "loss": 0.5},),
                {"steps": 1, "tokens_per_s": 9.0, "train_s": 1.0},
            ),
            "examine": GateReport(V1, self.manifest.id, 1.0, GateDecision.PROMOTE_TO_CANARY, ("sane",), {}),
        }

    def start(self, function: Any, *_: Any) -> str:
        self.started.append(function.__name__)
        return str(function.__name__)

    def get(self, ref: str) -> Any:
        found = self.results[ref]
        if isinstance(found, Exception):
            raise found
        return found


def labels(store: Store, number: int = 8) -> None:
    with store.write() as tx:
        for i in range(number):
            completions.insert(tx, replace(completion(f"c{i}", f"u{i}"), created_at=time.time()))
            feedback.record(tx, thumb(f"f{i}", f"c{i}", f"u{i}"))


def hold(store: Store, *held: str) -> None:
    with store.write() as tx:
        replicas.report(tx, ReplicaReport("r", "node", 1, held, dtype="float32"), 15.0)


def until(loop: Loop, store: Store, stage: Stage) -> Any:
    for _ in range(10):
        loop.step()
        with store.read() as tx:
            newest = rounds.newest(tx)
        if newest is not None and newest.stage is stage:
            return newest
    raise AssertionError(f"{newest} has not come to {stage}")


def cleared(loop: Loop) -> None:
    """Until what is done beside the tick is done."""
    for _ in range(1000):
        loop._clearing.look()
        if not loop._clearing._left:
            return
        time.sleep(0.01)
    raise AssertionError(f"{loop._clearing._left} are not cleared")
