"""What a sealed snapshot holds: its manifest and its shards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kto_ray.records.completions import Json


@dataclass(frozen=True, slots=True)
class SnapshotManifest:
    """What a snapshot holds. `id` is the SHA-256 (first 16 hex digits) of everything here but itself, created_at
    and newest_seq, which say when and where it was made."""

    id: str
    created_at: float
    n_desirable: int
    n_undesirable: int
    n_holdout_desirable: int
    n_holdout_undesirable: int
    sources: Mapping[str, Mapping[str, int]]  # training rows by source and class (desirable, undesirable)
    dropped: Mapping[str, int]  # rows left out, by filter
    ratio: float  # n_desirable / n_undesirable in training
    ratio_low: float  # 95% interval of the ratio (Wilson, on the desirable share)
    ratio_high: float
    desirable_weight: float
    undesirable_weight: float
    micro_batch: int
    seed: int
    model: str
    tokenizer_hash: str
    template_hash: str
    max_length: int
    shards: tuple[Shard, ...]
    newest_feedback_at: float
    filters: Json = field(default_factory=dict)  # the settings that decided which rows entered
    newest_seq: int = 0  # in the order of the store: feedback up to here was read


@dataclass(frozen=True, slots=True)
class Shard:
    """A Parquet file of a snapshot. `split` is "train" or "holdout"."""

    name: str
    split: str
    rows: int
    sha256: str
