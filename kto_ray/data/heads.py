"""Row heads: integers that stand for a row (hashes of id, user and texts; label; time), by which selection decides: of
these, millions fit in a driver."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kto_ray.data.near import Bytes, Hashes, sketch
from kto_ray.records.completions import Message
from kto_ray.records.examples import Example
from kto_ray.records.users import digest, user_hash

Index = NDArray[np.int64]

INTEGERS = ("id", "user", "prompt", "pair", "completion", "held")


@dataclass(frozen=True, slots=True)
class Heads:
    """Columns over n rows. Hashes are 64 bits of SHA-256: among a million rows one chance in 30 million that any two
    meet."""

    id: Hashes  # of the example's id
    user: Hashes
    prompt: Hashes
    pair: Hashes  # of prompt and answer
    completion: Hashes
    held: Hashes  # of the user, uniform: decides who is held out
    label: NDArray[np.bool_]  # desirable
    created_at: NDArray[np.float64]
    bands: Hashes  # (n, bands): rows that share one may be nearly the same; 0 for a row too short to tell
    signature: Bytes  # (n, PERMUTATIONS)

    def __len__(self) -> int:
        return len(self.id)


def make(examples: Sequence[Example], salt: str, near_duplicate: float) -> tuple[Heads, list[str]]:
    """The heads of some examples, and their conversations as canonical JSON."""
    messages = [canonical(example.messages) for example in examples]
    users = [user_hash(salt, example.user) for example in examples]
    bands, signature = sketch([(e.messages, e.said) for e in examples], near_duplicate)
    heads = Heads(
        id=_integers(id_hash(e.id) for e in examples),
        user=_integers(int(u[:16], 16) for u in users),
        prompt=_integers(_integer(m) for m in messages),
        pair=_integers(_integer(m, e.said) for m, e in zip(messages, examples, strict=True)),
        completion=_integers(_integer(e.completion_id) for e in examples),
        held=_integers(held_hash(u) for u in users),
        label=np.array([e.desirable for e in examples], np.bool_),
        created_at=np.array([e.created_at for e in examples], np.float64),
        bands=bands,
        signature=signature,
    )
    return heads, messages


def canonical(messages: Sequence[Message]) -> str:
    """The same text for the same conversation."""
    return json.dumps([dict(m) for m in messages], sort_keys=True)


@functools.lru_cache(maxsize=100_000)
def held_hash(user: str) -> int:
    """Where a user, named by their hash, stands in the order of holding out: the same now and in every snapshot."""
    return _integer("holdout", user)


def id_hash(example_id: str) -> int:
    return _integer(example_id)


def to_columns(heads: Heads) -> dict[str, pa.Array]:
    """As Arrow columns, the tables among them as fixed-size binary."""
    columns = {name: pa.array(getattr(heads, name)) for name in (*INTEGERS, "label", "created_at")}
    return columns | {"bands": _binary(heads.bands), "signature": _binary(heads.signature)}


def from_batches(batches: Iterable[pa.Table]) -> Heads:
    """The heads of all batches with `to_columns`' columns, one after another."""
    parts: dict[str, list[NDArray[Any]]] = {field.name: [] for field in fields(Heads)}
    for batch in batches:
        for name in (*INTEGERS, "label", "created_at"):
            parts[name].append(batch[name].to_numpy())
        for name, dtype in (("bands", np.uint64), ("signature", np.uint8)):
            parts[name].append(_table(batch[name].combine_chunks(), np.dtype(dtype)))
    columns: dict[str, Any] = {}
    for name, arrays in parts.items():
        columns[name] = np.concatenate([a for a in arrays if len(a)] or arrays or [_nothing(name)])
        arrays.clear()  # a column at a time is held twice
    return Heads(**columns)


def _nothing(name: str) -> NDArray[Any]:
    if name in INTEGERS:
        return np.empty(0, np.uint64)
    return {
        "label": np.empty(0, np.bool_),
        "created_at": np.empty(0, np.float64),
        "bands": np.empty((0, 0), np.uint64),
        "signature": np.empty((0, 0), np.uint8),
    }[name]


def _binary(table: NDArray[Any]) -> pa.Array:
    width = table.shape[1] * table.itemsize
    data = pa.py_buffer(np.ascontiguousarray(table).tobytes())
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(table), [None, data])


def _table(column: pa.Array, dtype: np.dtype[Any]) -> NDArray[Any]:
    width = column.type.byte_width
    if width == 0 or len(column) == 0:
        return np.empty((len(column), width // dtype.itemsize), dtype)
    data = np.frombuffer(column.buffers()[1], np.uint8)[column.offset * width : (column.offset + len(column)) * width]
    return data.view(dtype).reshape(len(column), -1)


def _integers(values: Iterable[int]) -> Hashes:
    return np.fromiter(values, np.uint64)


def _integer(*parts: str) -> int:
    return int(digest(*parts)[:16], 16)
