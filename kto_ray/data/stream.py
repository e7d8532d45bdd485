"""Stream a snapshot's training rows to workers in snapshot order, in whole micro-batches."""

from __future__ import annotations

import time
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data import Dataset
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.streaming_executor import StreamingExecutor

from kto_ray import paths
from kto_ray.data.shards import TRAIN, verified
from kto_ray.records.snapshots import SnapshotManifest

COLUMNS = ["label", "prompt_ids", "completion_ids", "kl_completion_ids"]
PAUSE_S = 0.5


class Pause(ExecutionCallback):  # type: ignore[misc]  # Ray is not typed
    """Lets Ray Data's scheduling loop rest after turns that moved nothing, longer after each.

    Once the object store holds all blocks that it may, the loop turns without waiting and burns a whole core
    (`StreamingExecutor.run` of Ray 2.60). On two cores that made a training step three times as long.
    """

    def __init__(self) -> None:
        self.moved, self.idle_turns = 0, 0

    def on_execution_step(self, executor: StreamingExecutor) -> None:
        of_operators = [operator.metrics for operator in executor._topology]
        moved = sum(m.num_tasks_submitted + m.num_task_outputs_generated for m in of_operators)
        self.idle_turns = self.idle_turns + 1 if moved == self.moved else 0
        self.moved = moved
        time.sleep(min(PAUSE_S, 0.01 * self.idle_turns))


def training_dataset(uri: str, manifest: SnapshotManifest, pool: Mapping[str, str] | None = None) -> Dataset:
    """The training rows of a snapshot, in its order; every shard's hash is checked first.

    A block is a row group, which holds whole micro-batches. `read_parquet` gives no such promise (it cuts blocks by
    their bytes).

    Args:
        uri: the snapshot's directory.
        manifest: its manifest.
        pool: Ray's label selector of the nodes that read; None or empty for all.

    Returns:
        Rows of COLUMNS; each run of `manifest.micro_batch` rows is a micro-batch.

    Raises:
        ValueError: a shard is missing or damaged.
    """
    groups = _groups(uri, manifest)

    def rows(batch: pa.Table) -> pa.Table:
        return pa.concat_tables([_read_group(uri, *groups[i]) for i in batch["id"].to_pylist()])

    dataset = ray.data.range(len(groups), override_num_blocks=len(groups))
    dataset.context.execution_options.preserve_order = True
    dataset.context.execution_options.label_selector = dict(pool) if pool else None
    dataset.context.enable_progress_bars = False
    dataset.context.custom_execution_callback_classes = [Pause]
    return dataset.map_batches(rows, batch_format="pyarrow", batch_size=1)


def _groups(uri: str, manifest: SnapshotManifest) -> list[tuple[str, int]]:
    """(shard name, row group) of all training rows."""
    groups: list[tuple[str, int]] = []
    for shard in (s for s in manifest.shards if s.split == TRAIN):
        footer = pq.ParquetFile(pa.BufferReader(verified(uri, shard))).metadata
        groups += [(shard.name, i) for i in range(footer.num_row_groups)]
    return groups


def _read_group(uri: str, name: str, group: int) -> pa.Table:
    fs, path = paths.filesystem(paths.join(uri, name))
    with fs.open(path, "rb") as file:
        return pq.ParquetFile(file).read_row_group(group, columns=COLUMNS)
