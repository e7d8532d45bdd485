"""Stream a snapshot's training rows to workers in snapshot order, in whole micro-batches."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data import Dataset, ExecutionOptions

from kto_ray import paths
from kto_ray.data.shards import TRAIN, verified
from kto_ray.types import SnapshotManifest

COLUMNS = ["example_id", "label", "prompt_ids", "completion_ids", "kl_completion_ids"]


def training_dataset(uri: str, manifest: SnapshotManifest, workers: int = 1) -> Dataset:
    """The training rows of a snapshot, in its order; every shard's hash is checked first.

    A block is a row group, which holds whole micro-batches, and the last micro-batches that would not divide among
    the workers are left out: `streaming_split(workers, equal=True)` then cuts only between micro-batches, so rows
    stay with their KL pairs. `read_parquet` gives no such promise (it cuts blocks by their bytes).

    Ray Train puts its own execution options in place of the dataset's: hand it
    `DataConfig(execution_options=ordered())`, or the order is lost.

    Args:
        uri: the snapshot's directory.
        manifest: its manifest.
        workers: training workers that share the rows.

    Returns:
        Rows of COLUMNS; each run of `manifest.micro_batch` rows is a micro-batch.

    Raises:
        ValueError: a shard is missing or damaged, or there are fewer micro-batches than workers.
    """
    groups = _groups(uri, manifest, workers)

    def rows(batch: pa.Table) -> pa.Table:
        return pa.concat_tables([_read_group(uri, *groups[i]) for i in batch["id"].to_pylist()])

    dataset = ray.data.range(len(groups), override_num_blocks=len(groups))
    dataset.context.execution_options.preserve_order = True
    return dataset.map_batches(rows, batch_format="pyarrow", batch_size=1)


def ordered() -> ExecutionOptions:
    """Ray Data's execution options that keep the order of rows."""
    return ExecutionOptions(preserve_order=True)


def _groups(uri: str, manifest: SnapshotManifest, workers: int) -> list[tuple[str, int, int]]:
    """(shard name, row group, rows of it to read), as many whole micro-batches as divide among the workers."""
    groups: list[tuple[str, int, int]] = []
    for shard in (s for s in manifest.shards if s.split == TRAIN):
        footer = pq.ParquetFile(pa.BufferReader(verified(uri, shard))).metadata
        groups += [(shard.name, i, footer.row_group(i).num_rows) for i in range(footer.num_row_groups)]
    left = sum(rows for _, _, rows in groups) // (manifest.micro_batch * workers) * manifest.micro_batch * workers
    if left == 0:
        raise ValueError(
            f"snapshot {manifest.id} holds {(manifest.n_desirable + manifest.n_undesirable) // manifest.micro_batch} "
            f"micro-batches of {manifest.micro_batch} rows, fewer than the {workers} training workers; lower "
            "train.workers or kto.micro_batch"
        )
    chosen: list[tuple[str, int, int]] = []
    for name, group, rows in groups:
        if left > 0:
            chosen.append((name, group, min(rows, left)))
            left -= chosen[-1][2]
    return chosen


def _read_group(uri: str, name: str, group: int, rows: int) -> pa.Table:
    fs, path = paths.filesystem(paths.join(uri, name))
    with fs.open(path, "rb") as file:
        return pq.ParquetFile(file).read_row_group(group, columns=COLUMNS).slice(0, rows)
