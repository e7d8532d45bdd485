"""Which rows a snapshot holds, by user and completion: an index beside its shards, which nobody reads to know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kto_ray import paths
from kto_ray.data.shards import verified
from kto_ray.data.tombstone import Purged, read_tombstone
from kto_ray.records.snapshots import Shard, SnapshotManifest

SCHEMA = pa.schema({"user_hash": pa.string(), "completion_id": pa.string(), "split": pa.string()})
KEYS = ["user_hash", "completion_id"]


def write_index(folder: str, shards: Iterable[Shard]) -> None:
    """Write the index of the shards in a folder (URI), a shard at a time."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, SCHEMA, compression="zstd") as writer:
        for shard in shards:
            writer.write_table(_rows_of(folder, shard).sort_by("user_hash"))
    paths.write_atomic(paths.join(folder, paths.SNAPSHOT_ROWS), bytes(sink.getvalue()))


def held(uri: str, manifest: SnapshotManifest, user: str | None, asked: Sequence[str]) -> dict[str, int]:
    """How many rows of each split a user (their hash) gave, or anyone gave on one of the completions `asked`.

    Raises:
        Purged: the snapshot's rows were deleted for a user's sake, or are being deleted; or it expired and has no
            index.
        ValueError: it has no index, and a shard is missing or damaged.
    """
    tombstone = read_tombstone(uri)
    if tombstone is not None and not tombstone.expired:
        raise Purged(uri, tombstone)
    wanted = pc.field("completion_id").isin(pa.array(asked, pa.string()))
    if user is not None:
        wanted = wanted | (pc.field("user_hash") == user)
    fs, path = paths.filesystem(paths.join(uri, paths.SNAPSHOT_ROWS))
    if fs.exists(path):
        found = pq.read_table(path, filesystem=fs, filters=wanted, columns=["split"])["split"].to_pylist()
        return dict(Counter(found))
    if tombstone is not None:
        raise Purged(uri, tombstone)
    rows: Counter[str] = Counter()
    for shard in manifest.shards:  # sealed before there were indexes
        verified(uri, shard)
        rows.update(_rows_of(uri, shard).filter(wanted)["split"].to_pylist())
    return dict(rows)


def _rows_of(folder: str, shard: Shard) -> pa.Table:
    fs, path = paths.filesystem(paths.join(folder, shard.name))
    table = pq.read_table(path, filesystem=fs, columns=KEYS)
    return table.append_column("split", pa.array([shard.split] * table.num_rows, pa.string())).cast(SCHEMA)
