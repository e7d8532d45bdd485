"""How far the stream of a snapshot's training rows reads ahead, and that it rests when it may read no further."""

from __future__ import annotations

import os
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from ray.data import ExecutionResources

from kto_ray.config import load_config
from kto_ray.data import stream
from kto_ray.data.stream import PAUSE_S, training_dataset
from kto_ray.model import resolve_model
from kto_ray.paths import Paths
from tests.support.snapshots import MICRO, take, thumbs

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]

GROUPS = 32  # of the large stream


@pytest.fixture
def large_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stream of GROUPS row groups of 2 MiB each; the folder where every read leaves a mark; the pauses made."""
    manifest = take(tmp_path, resolve_model(load_config().model), thumbs())
    marks = tmp_path / "read"
    marks.mkdir()
    pauses: list[float] = []

    def read(uri: str, name: str, group: int) -> pa.Table:
        (marks / str(group)).touch()
        ids = pa.array([list(range(2**19 // MICRO))] * MICRO, pa.list_(pa.int32()))
        return pa.table({"prompt_ids": ids})

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        time.sleep(seconds)

    monkeypatch.setattr(stream, "_groups", lambda uri, manifest: [("shard", i) for i in range(GROUPS)])
    monkeypatch.setattr(stream, "_read_group", read)
    monkeypatch.setattr(stream, "time", types.SimpleNamespace(sleep=pause))
    return training_dataset(Paths(str(tmp_path)).snapshot(manifest.id), manifest), marks, pauses


def eventually(holds: Callable[[], bool]) -> bool:
    until = time.monotonic() + 60
    while not holds() and time.monotonic() < until:
        time.sleep(0.1)
    return holds()


def test_the_stream_rests_when_the_object_store_is_full(large_groups: Any) -> None:
    dataset, marks, pauses = large_groups
    dataset.context.execution_options.resource_limits = ExecutionResources.for_limits(object_store_memory=8 * 2**20)
    batches = iter(dataset.iter_batches(batch_size=MICRO, batch_format="pyarrow"))
    next(batches)
    assert eventually(lambda: PAUSE_S in pauses)
    assert len(os.listdir(marks)) < GROUPS
    turns = len(pauses)
    time.sleep(4 * PAUSE_S)
    assert len(pauses) - turns <= 5
    assert sum(1 for _ in batches) == GROUPS - 1


def test_the_stream_reads_ahead_without_a_rest(large_groups: Any) -> None:
    dataset, marks, pauses = large_groups
    batches = iter(dataset.iter_batches(batch_size=MICRO, batch_format="pyarrow"))
    next(batches)
    assert eventually(lambda: len(os.listdir(marks)) == GROUPS)
    assert pauses.count(0) > GROUPS / 4  # turns that moved something are followed by the next at once
    assert sum(1 for _ in batches) == GROUPS - 1
