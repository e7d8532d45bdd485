"""The passes over all rows while a snapshot is made, by Ray Data: read, tokenize, put in order and write.

Texts and tokens live in Ray's object store, which spills to disk, and in one block of a task at a time. To the driver
come columns of integers, and to the tasks go sorted arrays of them, never a dictionary.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray
from ray.data import Dataset, TaskPoolStrategy

from kto_ray import paths
from kto_ray.config import Config
from kto_ray.data import encoded, heads, tokens
from kto_ray.data.heads import Heads, Index
from kto_ray.data.near import Hashes
from kto_ray.data.shards import HOLDOUT, TRAIN, finish, parquet
from kto_ray.records.examples import Example
from kto_ray.records.snapshots import Shard
from kto_ray.records.users import user_hash

R = TypeVar("R")

ROWS_PER_TOKENIZER = 5000  # a process needs seconds to import the tokenizer, which so many rows repay

_HEAD_NAMES = [*heads.INTEGERS, "label", "created_at", "bands", "signature"]
_TEXT_SCHEMA = pa.schema(
    {
        **dict.fromkeys(("example_id", "completion_id", "user_hash", "source", "adapter"), pa.string()),
        **dict.fromkeys(("messages", "answer"), pa.string()),
        **dict.fromkeys(("ended", "reasoned", "called", "shaped"), pa.bool_()),
        **dict.fromkeys(("read_ids", "said_ids"), pa.binary()),  # of the engine; null: to be made from the texts
    }
)


@dataclass(frozen=True, slots=True)
class Measured:
    """What tokenizing showed of the selected rows, in the order of their ids."""

    id: Hashes
    fault: NDArray[np.int8]  # index into encoded.FAULTS
    length: NDArray[np.int32]  # tokens of prompt and answer


@dataclass(frozen=True, slots=True)
class Written:
    """The shards, and the training rows by source and class."""

    shards: tuple[Shard, ...]
    sources: dict[str, dict[str, int]]


def read_rows(ranges: Sequence[R], read: Callable[[R], list[Example]], config: Config) -> Dataset:
    """Examples as rows, with their heads. The ranges travel in the closure, since Arrow would turn tuples to lists."""

    def rows(batch: pa.Table) -> pa.Table:
        return _raw([example for i in batch["id"].to_pylist() for example in read(ranges[i])], config)

    if not ranges:
        return ray.data.from_arrow(_raw([], config)).materialize()
    indices = ray.data.range(len(ranges), override_num_blocks=len(ranges))
    return indices.map_batches(rows, batch_format="pyarrow", batch_size=1).materialize()


def _raw(found: Sequence[Example], config: Config) -> pa.Table:
    salt, thinks = config.salt, config.data.reasoning == "context"
    made, messages = heads.make(found, salt, config.data.near_duplicate)
    ours = [e.base == config.model.mark for e in found]  # another model's ids say nothing to this one
    texts: dict[str, list[Any]] = {
        "example_id": [e.id for e in found],
        "completion_id": [e.completion_id for e in found],
        "user_hash": [user_hash(salt, e.user) for e in found],
        "source": [e.source for e in found],
        "adapter": [e.adapter for e in found],
        "messages": messages,
        "answer": [e.answer for e in found],
        "ended": [e.ended for e in found],
        "reasoned": [e.reasoned and thinks for e in found],
        "called": [bool(e.tool_calls) for e in found],
        "shaped": [e.shaped for e in found],
        "read_ids": [e.prompt_ids if own else None for e, own in zip(found, ours, strict=True)],
        "said_ids": [e.answer_ids if own else None for e, own in zip(found, ours, strict=True)],
    }
    columns = {name: pa.array(values, _TEXT_SCHEMA.field(name).type) for name, values in texts.items()}
    return pa.table(heads.to_columns(made) | columns)


def read_heads(raw: Dataset) -> Heads:
    return heads.from_batches(_batches(raw.select_columns(_HEAD_NAMES)))


def tokenize(raw: Dataset, chosen: Hashes, model_path: str, config: Config) -> Dataset:
    """The rows whose id is among the sorted `chosen`, as columns of encoded.SCHEMA."""
    wanted = ray.put(chosen)
    size = min(raw.num_blocks(), 1 + len(chosen) // ROWS_PER_TOKENIZER)
    revision, max_length = config.model.revision, config.data.max_length

    def rows(batch: pa.Table) -> pa.Table:
        own = batch.filter(pa.array(_find(ray.get(wanted), batch["id"].to_numpy()) >= 0))
        return encoded.block(own, partial(tokens.load_tokenizer, model_path, revision), max_length)

    compute = TaskPoolStrategy(size=size)
    return raw.map_batches(rows, batch_format="pyarrow", batch_size=None, compute=compute).materialize()


def measure(tokenized: Dataset) -> Measured:
    """The length of every row, and why it cannot be trained on."""

    def small(batch: pa.Table) -> pa.Table:
        length = pc.add(pc.list_value_length(batch["prompt_ids"]), pc.list_value_length(batch["completion_ids"]))
        return pa.table({"id": batch["id"], "fault": batch["fault"], "length": length})

    parts = list(_batches(tokenized.map_batches(small, batch_format="pyarrow", batch_size=None)))
    table = pa.concat_tables(parts)
    order = np.argsort(table["id"].to_numpy(), kind="stable")
    return Measured(*(table[name].to_numpy()[order] for name in ("id", "fault", "length")))


def write(
    tokenized: Dataset, train: Hashes, holdout: Hashes, staging: str, micro_batch: int, config: Config
) -> Written:
    """Put the rows in order and write them, a shard a task.

    Args:
        tokenized: rows, with others among them.
        train, holdout: the ids of the rows in their final order.
        staging: the directory to write to.
    """
    ids = np.concatenate([train, holdout])
    by_id = np.argsort(ids, kind="stable")
    sorted_ids, places = ray.put(ids[by_id]), ray.put(by_id)
    per_shard = max(micro_batch, config.data.rows_per_shard // micro_batch * micro_batch)  # no micro-batch spans two
    ends = [*_ends(0, len(train), per_shard), *_ends(len(train), len(ids), per_shard)]
    n_train, max_length = len(train), config.data.max_length

    def placed(batch: pa.Table) -> pa.Table:
        at = _find(ray.get(sorted_ids), batch["id"].to_numpy())
        place = np.append(ray.get(places), 0)[at]
        return batch.drop_columns(["id", "fault"]).append_column("place", pa.array(place)).filter(pa.array(at >= 0))

    def written(batch: pa.Table) -> pa.Table:
        """The sorted block between two `ends`."""
        place = batch["place"].to_numpy()
        if len(place) == 0:
            return _SHARD_SCHEMA.empty_table()
        shard = int(np.searchsorted(ends, place[0], side="right"))
        first = ends[shard - 1] if shard else 0
        # More rows than planned would mean that key ranges overlap.
        assert (place == np.arange(first, ends[shard])).all(), (first, ends[shard], len(place))
        split, number = (TRAIN, shard) if first < n_train else (HOLDOUT, shard - -(-n_train // per_shard))
        table = finish(batch.combine_chunks(), split, micro_batch, max_length)
        data = parquet(table, micro_batch, max_length)
        name = f"{split}-{number:05d}.parquet"
        paths.write_atomic(paths.join(staging, name), data)
        counts = Counter(zip(table["source"].to_pylist(), table["label"].to_pylist(), strict=True))
        sources = json.dumps([[source, label, n] for (source, label), n in counts.items()])
        facts = [shard, name, split, table.num_rows, hashlib.sha256(data).hexdigest(), sources]
        return pa.table([[fact] for fact in facts], schema=_SHARD_SCHEMA)

    # The last of the blocks, from the last end on, is empty.
    in_order = tokenized.map_batches(placed, batch_format="pyarrow", batch_size=None).sort("place", boundaries=ends)
    done = in_order.map_batches(written, batch_format="pyarrow", batch_size=None)
    facts = sorted((row for batch in _batches(done) for row in batch.to_pylist()), key=lambda row: int(row["shard"]))
    assert [row["shard"] for row in facts] == list(range(len(ends))), (len(facts), len(ends))
    return Written(
        tuple(Shard(row["name"], row["split"], row["rows"], row["sha256"]) for row in facts),
        _by_source_and_class(json.loads(row["sources"]) for row in facts if row["split"] == TRAIN),
    )


_SHARD_SCHEMA = pa.schema(
    {
        "shard": pa.int64(),
        "name": pa.string(),
        "split": pa.string(),
        "rows": pa.int64(),
        "sha256": pa.string(),
        "sources": pa.string(),
    }
)


def _ends(start: int, stop: int, step: int) -> list[int]:
    return [min(low + step, stop) for low in range(start, stop, step)]


def _by_source_and_class(counted: Iterator[list[tuple[str, bool, int]]]) -> dict[str, dict[str, int]]:
    sources: dict[str, dict[str, int]] = {}
    for source, label, n in (entry for shard in counted for entry in shard):
        of_source = sources.setdefault(source, {"desirable": 0, "undesirable": 0})
        of_source["desirable" if label else "undesirable"] += n
    return dict(sorted(sources.items()))


def _find(sorted_ids: Hashes, ids: Hashes) -> Index:
    """Where each id stands among the sorted ones, -1 if it does not."""
    if len(sorted_ids) == 0:
        return np.full(len(ids), -1)
    at = np.minimum(np.searchsorted(sorted_ids, ids), len(sorted_ids) - 1)
    return np.where(sorted_ids[at] == ids, at, -1)


def _batches(dataset: Dataset) -> Iterator[pa.Table]:
    yield from dataset.iter_batches(batch_format="pyarrow", batch_size=None)
