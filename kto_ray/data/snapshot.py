"""Freeze labelled examples into a snapshot: tokenized Parquet shards, named by their content, the manifest last.

A snapshot depends on its examples, the tokenizer, the config and the seed, never on the order of reading. Ray Data
carries texts and tokens; the driver holds only the heads of rows and one shard at a time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from ray.data import Dataset, TaskPoolStrategy

from kto_ray import paths
from kto_ray.config import Config
from kto_ray.data import tokens
from kto_ray.data.balance import Balance, balance, interleave
from kto_ray.data.select import Head, Selection, cap, head, select
from kto_ray.data.shards import HOLDOUT, HOLDOUT_SCHEMA, TRAIN, TRAIN_SCHEMA, finish, parquet, verified
from kto_ray.types import Example, Shard, SnapshotManifest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

R = TypeVar("R")
logger = logging.getLogger(__name__)

ROWS_PER_TOKENIZER = 5000  # a process needs seconds to import the tokenizer, which so many rows repay
HEAD_COLUMNS = [field.name for field in dataclasses.fields(Head)]


def freeze(
    config: Config,
    model_path: str,
    ranges: Sequence[R],
    read: Callable[[R], list[Example]],
    dropped: Mapping[str, int],
    newest_feedback_at: float,
) -> SnapshotManifest:
    """Read, select, tokenize, order and write; Ray must be up.

    Args:
        config: data, kto, model, salt and home are used.
        model_path: the base model, a local directory or a Hugging Face id; only its tokenizer is read.
        ranges: key ranges of the store, one read task each.
        read: the labelled examples of a range; runs in Ray tasks, so it must be picklable.
        dropped: rows that were left out before, by reason; joined with those left out here: duplicate, contradiction
            (by one user, the latest stands), user_cap, window, too_long (the prompt fills max_length), unrenderable
            (the chat template refuses it), remainder (does not fill a micro-batch).
        newest_feedback_at: the newest event that `read` may have seen.

    Returns:
        The manifest of the snapshot under `Paths(config.home)`; an existing one with the same content is reused.

    Raises:
        ValueError: a class is missing, the ratio lies beyond 1:100, fewer rows than a micro-batch are left, or the
            tokenizer has no chat template.
    """
    hashing = ray.remote(tokens.hashes).remote(model_path, config.model.revision)
    raw = _read(ranges, read, config.salt)
    selection = select(_heads(raw), config.data)
    balance(*_counts(selection.train), config.kto.loss_aversion)  # refuses before the costly part
    try:
        hashes = ray.get(hashing)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    tokenized = _tokenize(raw, selection, model_path, config)
    plan = _plan(config, selection, *_measured(tokenized))
    logger.info("snapshot: %d training and %d held-out rows", len(plan.train), len(plan.holdout))
    home = paths.Paths(config.home)
    staging = home.snapshot_staging(_staging_key(plan))
    try:
        shards = _write(config, staging, _sorted(tokenized, plan), plan)
        manifest = _manifest(config, plan, shards, hashes, Counter(dropped) + plan.dropped, newest_feedback_at)
        return _publish(home, staging, manifest)
    finally:
        fs, path = paths.filesystem(staging)
        if fs.exists(path):
            fs.rm(path, recursive=True)


@dataclass(frozen=True, slots=True)
class _Plan:
    """The rows of a snapshot: training in training order, holdout by example id."""

    train: tuple[Head, ...]
    holdout: tuple[Head, ...]
    balance: Balance
    dropped: Counter[str]


def _read(ranges: Sequence[R], read: Callable[[R], list[Example]], salt: str) -> Dataset:
    """Examples as rows, with their heads. The ranges travel in the closure, since Arrow would turn tuples to lists."""

    def rows(batch: pa.Table) -> pa.Table:
        found = [example for i in batch["id"].to_pylist() for example in read(ranges[i])]
        return pa.Table.from_pylist([_row(example, salt) for example in found], schema=_RAW_SCHEMA)

    if not ranges:
        return ray.data.from_arrow(_RAW_SCHEMA.empty_table()).materialize()
    indices = ray.data.range(len(ranges), override_num_blocks=len(ranges))
    return indices.map_batches(rows, batch_format="pyarrow", batch_size=1).materialize()


_RAW_SCHEMA = pa.schema(
    {
        **dict.fromkeys(("example_id", "user_hash", "prompt_hash", "pair_hash"), pa.string()),
        "label": pa.bool_(),
        "source": pa.string(),
        "created_at": pa.float64(),
        **dict.fromkeys(("completion_id", "adapter", "messages", "answer"), pa.string()),
        "ended": pa.bool_(),
    }
)


def _row(example: Example, salt: str) -> dict[str, Any]:
    messages = json.dumps([dict(m) for m in example.messages], sort_keys=True)
    facts = dataclasses.asdict(head(example, messages, salt))
    origin = {"completion_id": example.completion_id, "adapter": example.adapter}
    return {**facts, **origin, "messages": messages, "answer": example.answer, "ended": example.ended}


def _heads(raw: Dataset) -> list[Head]:
    return [Head(**row) for batch in _batches(raw.select_columns(HEAD_COLUMNS)) for row in batch.to_pylist()]


def _batches(dataset: Dataset) -> Iterator[pa.Table]:
    yield from dataset.iter_batches(batch_format="pyarrow", batch_size=None)


def _tokenize(raw: Dataset, selection: Selection, model_path: str, config: Config) -> Dataset:
    """Selected rows with their ids and a column `fault`: null, "unrenderable" or "too_long"."""
    chosen = ray.put({h.example_id for h in (*selection.train, *selection.holdout)})
    size = min(raw.num_blocks(), 1 + (len(selection.train) + len(selection.holdout)) // ROWS_PER_TOKENIZER)

    revision, max_length = config.model.revision, config.data.max_length

    def rows(batch: pa.Table) -> pa.Table:
        tokenizer, wanted = tokens.load_tokenizer(model_path, revision), ray.get(chosen)
        own = [row for row in batch.to_pylist() if row["example_id"] in wanted]
        return pa.Table.from_pylist([_ids(row, tokenizer, max_length) for row in own], schema=_IDS_SCHEMA)

    return raw.map_batches(rows, batch_format="pyarrow", compute=TaskPoolStrategy(size=size)).materialize()


_IDS_SCHEMA = HOLDOUT_SCHEMA.append(pa.field("fault", pa.string()))


def _ids(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, Any]:
    ids = tokens.encode(tokenizer, json.loads(row["messages"]), row["answer"], row["ended"])
    if ids is None:
        return {**row, "fault": "unrenderable", "prompt_ids": [], "completion_ids": []}
    prompt_ids, completion_ids = ids
    if len(prompt_ids) >= max_length:
        return {**row, "fault": "too_long", "prompt_ids": [], "completion_ids": []}
    return {**row, "fault": None, "prompt_ids": prompt_ids, "completion_ids": completion_ids[:max_length]}


def _measured(tokenized: Dataset) -> tuple[dict[str, str], dict[str, int]]:
    """By example id: why the row cannot be trained on, or how many tokens it has."""
    faults: dict[str, str] = {}
    lengths: dict[str, int] = {}
    for batch in _batches(tokenized.select_columns(["example_id", "fault", "prompt_ids", "completion_ids"])):
        tokens_of = pc.add(pc.list_value_length(batch["prompt_ids"]), pc.list_value_length(batch["completion_ids"]))
        of_rows = zip(batch["example_id"].to_pylist(), batch["fault"].to_pylist(), tokens_of.to_pylist(), strict=True)
        for example_id, fault, n_tokens in of_rows:
            if fault is None:
                lengths[example_id] = n_tokens
            else:
                faults[example_id] = fault
    return faults, lengths


def _plan(config: Config, selection: Selection, faults: Mapping[str, str], lengths: Mapping[str, int]) -> _Plan:
    """Leave out the faulty rows, cap once more (their absence raises the others' shares), order and weigh."""
    dropped = selection.dropped + Counter(faults.values())
    train, holdout = (
        sorted(
            cap([h for h in split if h.example_id not in faults], config.data.max_user_share, dropped),
            key=lambda h: h.example_id,
        )
        for split in (selection.train, selection.holdout)
    )
    balance(*_counts(train), config.kto.loss_aversion)
    if len(train) < config.kto.micro_batch:
        raise ValueError(
            f"training set holds {len(train)} rows, fewer than one micro-batch (kto.micro_batch is "
            f"{config.kto.micro_batch}): at least {config.kto.micro_batch - len(train)} more rows needed"
        )
    prompts = np.unique([h.prompt_hash for h in train], return_inverse=True)[1]
    labels = np.array([h.label for h in train])
    widths = np.array([min(lengths[h.example_id], config.data.max_length) for h in train])
    order = interleave(labels, prompts, widths, config.kto.micro_batch, config.data.seed)
    dropped["remainder"] += len(train) - len(order)
    ordered = tuple(train[i] for i in order)
    weights = balance(*_counts(ordered), config.kto.loss_aversion)
    if weights.warning:
        logger.warning("snapshot: %s", weights.warning)
    return _Plan(ordered, tuple(holdout), weights, dropped)


def _counts(rows: Sequence[Head]) -> tuple[int, int]:
    """Desirable and undesirable rows."""
    desirable = sum(h.label for h in rows)
    return desirable, len(rows) - desirable


def _staging_key(plan: _Plan) -> str:
    """Named by the rows, so that a freeze that was killed is cleared away when it is tried again."""
    rows = "".join(h.example_id for h in (*plan.train, *plan.holdout))
    return "snapshot-" + hashlib.sha256(rows.encode()).hexdigest()[:16]


def _sorted(tokenized: Dataset, plan: _Plan) -> Dataset:
    """The planned rows in the planned order, training first."""
    places = ray.put({h.example_id: place for place, h in enumerate((*plan.train, *plan.holdout))})

    def placed(batch: pa.Table) -> pa.Table:
        of_id = ray.get(places)
        place = pa.array([of_id.get(i) for i in batch["example_id"].to_pylist()], pa.int64())
        return batch.append_column("place", place).filter(pc.is_valid(place))

    return tokenized.map_batches(placed, batch_format="pyarrow").sort("place").materialize()


def _write(config: Config, staging: str, rows: Dataset, plan: _Plan) -> tuple[Shard, ...]:
    micro = config.kto.micro_batch
    per_shard = max(micro, config.data.rows_per_shard // micro * micro)  # a micro-batch never spans two shards
    train, holdout = rows.split_at_indices([len(plan.train)])
    shards: list[Shard] = []
    for split, dataset in ((TRAIN, train), (HOLDOUT, holdout)):
        batches = dataset.iter_batches(batch_format="pyarrow", batch_size=per_shard)
        for number, batch in enumerate(b for b in batches if b.num_rows):
            table = finish(batch.combine_chunks(), split, micro, config.data.max_length)
            data = parquet(table, micro, config.data.max_length)
            name = f"{split}-{number:05d}.parquet"
            paths.write_atomic(paths.join(staging, name), data)
            shards.append(Shard(name, split, table.num_rows, hashlib.sha256(data).hexdigest()))
    written = sum(s.rows for s in shards)
    # More rows than planned would mean that key ranges overlap.
    assert written == len(plan.train) + len(plan.holdout), (written, len(plan.train), len(plan.holdout))
    return tuple(shards)


def _manifest(
    config: Config,
    plan: _Plan,
    shards: tuple[Shard, ...],
    hashes: tuple[str, str],
    dropped: Counter[str],
    newest_feedback_at: float,
) -> SnapshotManifest:
    train, holdout = _counts(plan.train), _counts(plan.holdout)
    draft = SnapshotManifest(
        id="",
        created_at=time.time(),
        n_desirable=train[0],
        n_undesirable=train[1],
        n_holdout_desirable=holdout[0],
        n_holdout_undesirable=holdout[1],
        sources=dict(sorted(Counter(h.source for h in plan.train).items())),
        dropped=dict(sorted(dropped.items())),
        ratio=plan.balance.ratio,
        ratio_low=plan.balance.ratio_low,
        ratio_high=plan.balance.ratio_high,
        desirable_weight=plan.balance.desirable_weight,
        undesirable_weight=plan.balance.undesirable_weight,
        micro_batch=config.kto.micro_batch,
        seed=config.data.seed,
        model=config.model.id,
        tokenizer_hash=hashes[0],
        template_hash=hashes[1],
        max_length=config.data.max_length,
        shards=shards,
        newest_feedback_at=newest_feedback_at,
    )
    return dataclasses.replace(draft, id=_content_id(draft))


def _publish(home: paths.Paths, staging: str, manifest: SnapshotManifest) -> SnapshotManifest:
    final = home.snapshot(manifest.id)
    fs, source = paths.filesystem(staging)
    _, target = paths.filesystem(final)
    fs.makedirs(target, exist_ok=True)
    # Also over an existing snapshot: the bytes are the same, and a damaged shard is healed.
    for shard in manifest.shards:
        fs.mv(paths.join(source, shard.name), paths.join(target, shard.name))
    grave = paths.join(target, paths.SNAPSHOT_TOMBSTONE)
    if fs.exists(grave):  # what was purged was given again
        fs.rm(grave)
    if fs.exists(paths.join(target, paths.SNAPSHOT_MANIFEST)):
        return load_manifest(final)
    data = json.dumps(dataclasses.asdict(manifest), indent=1, sort_keys=True).encode()
    paths.write_atomic(paths.join(final, paths.SNAPSHOT_MANIFEST), data)
    return manifest


def _content_id(manifest: SnapshotManifest) -> str:
    facts = dataclasses.asdict(manifest)
    del facts["id"], facts["created_at"]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def load_manifest(uri: str) -> SnapshotManifest:
    """The manifest of the snapshot at a URI.

    Raises:
        ValueError: there is no finished snapshot, or the manifest is not the one that was written.
    """
    fs, path = paths.filesystem(paths.join(uri, paths.SNAPSHOT_MANIFEST))
    if not fs.exists(path):
        raise ValueError(f"no snapshot at {uri!r}: it has no {paths.SNAPSHOT_MANIFEST}; freeze one first")
    try:
        facts = json.loads(fs.cat_file(path))
        manifest = SnapshotManifest(**{**facts, "shards": tuple(Shard(**shard) for shard in facts["shards"])})
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"snapshot manifest at {uri!r} is damaged ({error}); freeze the snapshot again") from None
    if _content_id(manifest) != manifest.id:
        raise ValueError(
            f"snapshot manifest at {uri!r} was changed: it names {manifest.id}, its content is "
            f"{_content_id(manifest)}; freeze the snapshot again"
        )
    return manifest


def read_split(uri: str, manifest: SnapshotManifest, split: str) -> pa.Table:
    """All rows of a split ("train" or "holdout"), in snapshot order, every shard's hash checked.

    Returns:
        Columns of TRAIN_SCHEMA or HOLDOUT_SCHEMA; ids are list<int32>.

    Raises:
        ValueError: a shard is missing or damaged.
    """
    schema = TRAIN_SCHEMA if split == TRAIN else HOLDOUT_SCHEMA
    shards = [verified(uri, shard) for shard in manifest.shards if shard.split == split]
    return pa.concat_tables([schema.empty_table(), *(pq.read_table(pa.BufferReader(data)) for data in shards)])
