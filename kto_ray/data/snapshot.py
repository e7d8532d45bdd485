"""How a snapshot is made of labelled examples (`freeze`): tokenized shards, named by content, the manifest last.

A snapshot depends on its examples, the tokenizer, the config and the seed, never on the order of reading. The driver
holds integers of the rows alone (`heads`), and decides; the texts and tokens pass through Ray Data (`passes`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data import DataContext
from ray.data.context import ShuffleStrategy

from kto_ray import paths
from kto_ray.config import Config
from kto_ray.data import encoded, passes, tokens
from kto_ray.data.balance import Balance, balance, interleave
from kto_ray.data.heads import Heads, Index
from kto_ray.data.manifest import content_id, load_manifest, write_manifest
from kto_ray.data.row_index import write_index
from kto_ray.data.select import Selection, by_id, cap, select
from kto_ray.data.shards import HOLDOUT_SCHEMA, TRAIN, TRAIN_SCHEMA, verified
from kto_ray.records.examples import Example
from kto_ray.records.snapshots import SnapshotManifest

R = TypeVar("R")
logger = logging.getLogger(__name__)

# The settings that decide which rows enter; they stand in the manifest.
FILTERS = ("holdout_share", "holdout_days", "max_user_share", "max_rows", "older_share", "near_duplicate", "max_length")


def freeze(
    config: Config,
    model_path: str,
    ranges: Sequence[R],
    read: Callable[[R], list[Example]],
    dropped: Mapping[str, int],
    newest_feedback_at: float,
    newest_seq: int = 0,
    tell: Callable[[str], None] = logger.info,
    publishing: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> SnapshotManifest:
    """Read, select, tokenize, order and write; Ray must be up.

    Args:
        config: data, kto, model, salt and home are used.
        model_path: the base model, a local directory or a Hugging Face id; only its tokenizer is read.
        ranges: key ranges of the store, one read task each.
        read: the labelled examples of a range; runs in Ray tasks, so it must be picklable.
        dropped: rows that were left out before, by reason; joined with those left out here: duplicate, contradiction
            (by one user, the latest stands), near_duplicate, stale_holdout, user_cap, window, too_long (the prompt
            fills max_length), unrenderable (the chat template refuses it), remainder (does not fill a micro-batch).
        newest_feedback_at: the newest event that `read` may have seen (seconds since the epoch).
        newest_seq: its place in the order of the store.
        tell: hears the name of each stage when it begins: read, select, tokenize, order, write.
        publishing: is entered when all is written and nothing is published, and left when it is.

    Returns:
        The manifest of the snapshot under `Paths(config.home)`; an existing one with the same content is reused.

    Raises:
        ValueError: a class is missing, the ratio lies beyond 1:100, fewer rows than a micro-batch are left, or the
            tokenizer has no chat template.
    """
    selector = config.pool("train")  # what computes keeps away from the nodes that serve
    _keep_to(selector)
    hashing = ray.remote(tokens.hashes).options(label_selector=selector).remote(model_path, config.model.revision)
    tell("read")
    raw = passes.read_rows(ranges, read, config)
    tell("select")
    heads = passes.read_heads(raw)
    selection = select(heads, config.data)
    balance(*_counts(heads, selection.train), config.kto.loss_aversion)  # refuses before the costly part
    try:
        hashes = ray.get(hashing)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    tell("tokenize")
    chosen = np.sort(heads.id[np.concatenate([selection.train, selection.holdout])])
    tokenized = passes.tokenize(raw, chosen, model_path, config)
    del raw  # frees the texts
    tell("order")
    plan = _plan(config, heads, selection, passes.measure(tokenized))
    logger.info("snapshot: %d training and %d held-out rows", len(plan.train), len(plan.holdout))
    tell("write")
    home = paths.Paths(config.home)
    train, holdout = heads.id[plan.train], heads.id[plan.holdout]
    rows = hashlib.sha256(train.tobytes() + holdout.tobytes()).hexdigest()[:16]
    with _staging(home.snapshot_staging(f"snapshot-{rows}")) as staging:
        written = passes.write(tokenized, train, holdout, staging, config.kto.micro_batch, config)
        manifest = _manifest(config, plan, heads, written, hashes, Counter(dropped) + plan.dropped, newest_feedback_at)
        manifest = dataclasses.replace(manifest, newest_seq=newest_seq)
        write_index(staging, manifest.shards)
        with publishing():
            return _publish(home, staging, manifest)


def _keep_to(selector: Mapping[str, str]) -> None:
    """Have all tasks of this process's datasets run where Ray's label selector says. Ray 2.60 does not tell it to those
    of its usual way to sort; to the older way's it does."""
    context = DataContext.get_current()
    context.execution_options.label_selector = dict(selector) or None
    if selector:
        context.shuffle_strategy = ShuffleStrategy.SORT_SHUFFLE_PULL_BASED


@contextmanager
def _staging(uri: str) -> Iterator[str]:
    """A folder that is gone afterwards. Named by the rows: what a freeze that was killed left, the next one clears."""
    try:
        yield uri
    finally:
        fs, path = paths.filesystem(uri)
        if fs.exists(path):
            fs.rm(path, recursive=True)


@dataclass(frozen=True, slots=True)
class _Plan:
    """The rows of a snapshot, as numbers of heads: training in training order, holdout by id."""

    train: Index
    holdout: Index
    balance: Balance
    dropped: Counter[str]


def _plan(config: Config, heads: Heads, selection: Selection, measured: passes.Measured) -> _Plan:
    """Leave out the faulty rows, cap once more (their absence raises the others' shares), order and weigh."""
    codes = np.bincount(measured.fault, minlength=len(encoded.FAULTS)).tolist()
    dropped = selection.dropped + Counter(dict(zip(encoded.FAULTS[1:], codes[1:], strict=True)))

    def usable(rows: Index) -> Index:
        sound = rows[measured.fault[np.searchsorted(measured.id, heads.id[rows])] == 0]
        return by_id(heads, cap(heads, sound, config.data.max_user_share, dropped))

    train, holdout = usable(selection.train), usable(selection.holdout)
    balance(*_counts(heads, train), config.kto.loss_aversion)
    if len(train) < config.kto.micro_batch:
        raise ValueError(
            f"training set holds {len(train)} rows, fewer than one micro-batch (kto.micro_batch is "
            f"{config.kto.micro_batch}): at least {config.kto.micro_batch - len(train)} more rows needed"
        )
    widths = np.minimum(measured.length[np.searchsorted(measured.id, heads.id[train])], config.data.max_length)
    prompts = heads.prompt[train].view(np.int64)
    order = interleave(heads.label[train], prompts, widths, config.kto.micro_batch, config.data.seed)
    dropped["remainder"] += len(train) - len(order)
    weights = balance(*_counts(heads, train[order]), config.kto.loss_aversion)
    if weights.warning:
        logger.warning("snapshot: %s", weights.warning)
    return _Plan(train[order], holdout, weights, dropped)


def _counts(heads: Heads, rows: Index) -> tuple[int, int]:
    """Desirable and undesirable rows."""
    desirable = int(heads.label[rows].sum())
    return desirable, len(rows) - desirable


def _manifest(
    config: Config,
    plan: _Plan,
    heads: Heads,
    written: passes.Written,
    hashes: tuple[str, str],
    dropped: Counter[str],
    newest_feedback_at: float,
) -> SnapshotManifest:
    train, holdout = _counts(heads, plan.train), _counts(heads, plan.holdout)
    draft = SnapshotManifest(
        id="",
        created_at=time.time(),
        n_desirable=train[0],
        n_undesirable=train[1],
        n_holdout_desirable=holdout[0],
        n_holdout_undesirable=holdout[1],
        sources=written.sources,
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
        shards=written.shards,
        newest_feedback_at=newest_feedback_at,
        filters={name: getattr(config.data, name) for name in FILTERS},
    )
    return dataclasses.replace(draft, id=content_id(draft))


def _publish(home: paths.Paths, staging: str, manifest: SnapshotManifest) -> SnapshotManifest:
    final = home.snapshot(manifest.id)
    fs, source = paths.filesystem(staging)
    _, target = paths.filesystem(final)
    fs.makedirs(target, exist_ok=True)
    # Also over an existing snapshot: the bytes are the same, and a damaged shard is healed.
    for name in (paths.SNAPSHOT_ROWS, *(shard.name for shard in manifest.shards)):
        fs.mv(paths.join(source, name), paths.join(target, name))
    grave = paths.join(target, paths.SNAPSHOT_TOMBSTONE)
    if fs.exists(grave):  # what was purged was given again
        fs.rm(grave)
    if fs.exists(paths.join(target, paths.SNAPSHOT_MANIFEST)):
        return load_manifest(final)
    write_manifest(final, manifest)
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
