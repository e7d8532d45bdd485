"""A shard: a Parquet file of tokenized rows, the same bytes for the same rows."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from kto_ray import paths
from kto_ray.data.balance import rotate
from kto_ray.data.tombstone import Purged, read_tombstone
from kto_ray.records.snapshots import Shard

TRAIN, HOLDOUT = "train", "holdout"
GROUP_BYTES = 16 * 2**20  # of tokens in a row group, the unit that is streamed

IDS = pa.list_(pa.int32())
HOLDOUT_SCHEMA = pa.schema(
    {
        "example_id": pa.string(),
        "completion_id": pa.string(),
        "user_hash": pa.string(),
        "source": pa.string(),
        "label": pa.bool_(),
        "adapter": pa.string(),
        "created_at": pa.float64(),
        "prompt_ids": IDS,
        "completion_ids": IDS,
    }
)
TRAIN_SCHEMA = HOLDOUT_SCHEMA.append(pa.field("kl_completion_ids", IDS))


def finish(table: pa.Table, split: str, micro_batch: int, max_length: int) -> pa.Table:
    """Pair and truncate, as TRL's collator does: an answer and a KL answer keep what their prompt leaves room for.

    Args:
        table: rows in their final order, completions of at most max_length ids; for "train" a multiple of micro_batch.

    Returns:
        Columns of TRAIN_SCHEMA or HOLDOUT_SCHEMA.
    """
    room = max_length - pc.list_value_length(table["prompt_ids"]).to_numpy()
    completion = table["completion_ids"].combine_chunks()
    columns = {name: table[name] for name in HOLDOUT_SCHEMA.names} | {"completion_ids": _truncate(completion, room)}
    if split == HOLDOUT:
        return pa.table(columns, schema=HOLDOUT_SCHEMA)
    other = completion.take(pa.array(rotate(table.num_rows, micro_batch)))
    return pa.table(columns | {"kl_completion_ids": _truncate(other, room)}, schema=TRAIN_SCHEMA)


def _truncate(lists: pa.ListArray, limits: NDArray[np.integer[Any]]) -> pa.ListArray:
    """The first limits[i] elements of list i."""
    lengths = pc.list_value_length(lists).to_numpy()
    starts = np.cumsum(lengths) - lengths
    within = np.arange(lengths.sum()) - np.repeat(starts, lengths)
    values = lists.flatten().filter(pa.array(within < np.repeat(limits, lengths)))
    offsets = np.concatenate([[0], np.cumsum(np.minimum(lengths, limits))])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)


def parquet(table: pa.Table, micro_batch: int, max_length: int) -> bytes:
    """A row group holds whole micro-batches and at most GROUP_BYTES of tokens, or one micro-batch."""
    micro_bytes = 3 * 4 * max_length * micro_batch
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=micro_batch * max(1, GROUP_BYTES // micro_bytes))
    return bytes(sink.getvalue())


def verified(uri: str, shard: Shard) -> bytes:
    """The bytes of a shard.

    Raises:
        Purged: the snapshot's rows were deleted for a user's sake.
        ValueError: the shard is missing, or its hash differs from the manifest's.
    """
    fs, path = paths.filesystem(paths.join(uri, shard.name))
    if not fs.exists(path):
        if tombstone := read_tombstone(uri):
            raise Purged(uri, tombstone)
        raise ValueError(f"shard {shard.name!r} of the snapshot at {uri!r} is missing; freeze the snapshot again")
    data = bytes(fs.cat_file(path))
    found = hashlib.sha256(data).hexdigest()
    if found != shard.sha256:
        raise ValueError(
            f"shard {shard.name!r} of the snapshot at {uri!r} is damaged: SHA-256 {found[:16]}, the manifest says "
            f"{shard.sha256[:16]}; freeze the snapshot again"
        )
    return data
