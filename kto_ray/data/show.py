"""A snapshot for a person: what it holds, how it was weighed, what was left out, and a look at some rows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pyarrow.parquet as pq
from pyarrow import BufferReader
from rich.console import Group
from rich.table import Table
from rich.text import Text

from kto_ray.data.shards import verified
from kto_ray.data.tokens import load_tokenizer
from kto_ray.records.snapshots import SnapshotManifest

SHOWN = 300  # characters of a prompt's end and of an answer


def some_rows(
    uri: str, manifest: SnapshotManifest, model_path: str, revision: str | None, n: int
) -> list[dict[str, Any]]:
    """The first `n` training rows, as text, with their label, user hash and where they come from.

    Raises:
        ValueError: the shard is missing or damaged.
    """
    first = next((shard for shard in manifest.shards if shard.split == "train"), None)
    if first is None or n == 0:
        return []
    tokenizer = load_tokenizer(model_path, revision)
    rows = pq.ParquetFile(BufferReader(verified(uri, first))).read_row_group(0).slice(0, n).to_pylist()
    return [
        {
            "example": row["example_id"],
            "label": "desirable" if row["label"] else "undesirable",
            "user": row["user_hash"],
            "source": row["source"],
            "adapter": row["adapter"],
            "prompt": tokenizer.decode(row["prompt_ids"])[-SHOWN:],
            "answer": tokenizer.decode(row["completion_ids"])[:SHOWN],
            "tokens": len(row["prompt_ids"]) + len(row["completion_ids"]),
        }
        for row in rows
    ]


def page(manifest: SnapshotManifest, rows: Sequence[dict[str, Any]]) -> Group:
    """The manifest and the rows as tables for a terminal."""
    m = manifest
    facts = Table("snapshot", m.id, show_header=True)
    held_out = f"{m.n_holdout_desirable} desirable, {m.n_holdout_undesirable} undesirable"
    for name, value in {
        "sealed": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(m.created_at)),
        "training rows": f"{m.n_desirable} desirable, {m.n_undesirable} undesirable",
        "held-out rows": f"{held_out}, of other users",
        "desirable : undesirable": f"{m.ratio:.2f} (95% interval {m.ratio_low:.2f} to {m.ratio_high:.2f})",
        "weights": f"desirable {m.desirable_weight:.3f}, undesirable {m.undesirable_weight:.3f}",
        "from": "; ".join(
            f"{source}: {', '.join(f'{n} {of_class}' for of_class, n in classes.items())}"
            for source, classes in m.sources.items()
        ),
        "filters": ", ".join(f"{name} {value}" for name, value in m.filters.items()),
        "left out": ", ".join(f"{n} {why}" for why, n in m.dropped.items() if n) or "nothing",
        "order": f"micro-batches of {m.micro_batch}, seed {m.seed}, at most {m.max_length} tokens",
        "model": f"{m.model} (tokenizer {m.tokenizer_hash}, chat template {m.template_hash})",
    }.items():
        facts.add_row(name, value)
    shards = Table("shard", "split", "rows", "SHA-256")
    for shard in m.shards:
        shards.add_row(shard.name, shard.split, str(shard.rows), shard.sha256[:16])
    looked_at = Table("label", "user", "from", "prompt's end", "answer", show_lines=True)
    for row in rows:
        origin = f"{row['source']}\n{row['adapter']}\n{row['tokens']} tokens"
        # Text: an answer may hold what looks like markup
        looked_at.add_row(row["label"], row["user"][:12], origin, Text(row["prompt"]), Text(row["answer"]))
    return Group(facts, shards, *([looked_at] if rows else []))
