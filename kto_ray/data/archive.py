"""An archive: a Parquet file with the texts of old completions, written once; named anew when a row is erased."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kto_ray import paths
from kto_ray.records.archives import TEXTS, Archive
from kto_ray.records.completions import Completion

C = TypeVar("C", bound=Completion)

AS_JSON = ("messages", "params", "tool_calls")
BINARY = ("prompt_ids", "answer_ids")
SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "created_at": pa.float64(),
        **{name: pa.binary() if name in BINARY else pa.string() for name in TEXTS},
    }
)


def write(home: str, found: Sequence[Completion], now: float) -> Archive:
    """Write the texts of completions; there are some.

    Raises:
        OSError: the file cannot be written; nothing is left of it.
    """
    table = pa.Table.from_pylist([_row(completion) for completion in found], schema=SCHEMA)
    return _written(home, uuid.uuid4().hex[:16], table, now)


def without(home: str, archive: Archive, ids: Collection[str]) -> tuple[Archive, int]:
    """The archive without the rows of some completions, in a file of its own, and how many these were. The old file
    is still there."""
    table = _read(archive)
    theirs = pc.is_in(table["id"], pa.array(ids, pa.string()))
    kept = table.filter(pc.invert(theirs))
    if kept.num_rows == table.num_rows:
        return archive, 0
    if kept.num_rows == 0:
        return replace(archive, completions=0), table.num_rows
    return _written(home, archive.id, kept, archive.created_at), table.num_rows - kept.num_rows


def restored(completion: C, archive: Archive) -> C:
    """The completion with its texts.

    Raises:
        ValueError: the file is missing or damaged.
    """
    [whole] = restored_all([completion], archive)
    return whole


def restored_all(found: Sequence[C], archive: Archive) -> list[C]:
    """Those of some completions whose texts it holds, with these.

    Raises:
        ValueError: the file is missing or damaged.
    """
    ids = pa.array([completion.id for completion in found], pa.string())
    rows = {row["id"]: row for row in _read(archive).filter(pc.field("id").isin(ids)).to_pylist()}
    return [replace(one, **_texts(rows[one.id])) for one in found if one.id in rows]


def delete(archive: Archive) -> None:
    fs, path = paths.filesystem(archive.uri)
    if fs.exists(path):
        fs.rm(path)


def sweep(home: str, known: Collection[Archive]) -> int:
    """Delete the files that no archive is: what was killed between its file and its rows left them."""
    fs, folder = paths.filesystem(paths.Paths(home).archives())
    names = {archive.uri.rsplit("/", 1)[-1] for archive in known}
    parts = [str(part) for part in fs.ls(folder, detail=False)] if fs.exists(folder) else []
    left = [part for part in parts if part.rsplit("/", 1)[-1] not in names]
    for part in left:
        fs.rm(part)
    return len(left)


def _row(completion: Completion) -> dict[str, Any]:
    own = {name: getattr(completion, name) for name in SCHEMA.names}
    return {**own, **{name: json.dumps(own[name]) for name in AS_JSON}}


def _texts(row: dict[str, Any]) -> dict[str, Any]:
    texts = {name: json.loads(row[name]) if name in AS_JSON else row[name] for name in TEXTS}
    return texts | {name: tuple(texts[name]) for name in ("messages", "tool_calls")}


def _written(home: str, name: str, table: pa.Table, created_at: float) -> Archive:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    data = bytes(sink.getvalue())
    sha256 = hashlib.sha256(data).hexdigest()
    uri = paths.Paths(home).archive(f"{name}-{sha256[:8]}")
    paths.write_atomic(uri, data)
    times = pc.min_max(table["created_at"]).as_py()
    return Archive(name, created_at, uri, sha256, table.num_rows, times["min"], times["max"])


def _read(archive: Archive) -> pa.Table:
    fs, path = paths.filesystem(archive.uri)
    if not fs.exists(path):
        raise ValueError(f"archive {archive.id} is missing at {archive.uri!r}; restore it from a backup")
    data = bytes(fs.cat_file(path))
    found = hashlib.sha256(data).hexdigest()
    if found != archive.sha256:
        raise ValueError(
            f"archive {archive.id} at {archive.uri!r} is damaged: SHA-256 {found[:16]}, the store says "
            f"{archive.sha256[:16]}; restore it from a backup"
        )
    return pq.read_table(pa.BufferReader(data))
