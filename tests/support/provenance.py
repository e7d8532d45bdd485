"""Small hand-made rows, snapshots and adapters, for tests that follow a thumb."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from kto_ray.data.manifest import content_id
from kto_ray.data.row_index import write_index
from kto_ray.data.shards import HOLDOUT_SCHEMA, parquet
from kto_ray.records.adapters import AdapterVersion
from kto_ray.records.completions import Completion
from kto_ray.records.feedback import Feedback
from kto_ray.records.snapshots import Shard, SnapshotManifest
from kto_ray.records.users import user_hash
from tests.support import rows


def completion(name: str, user: str, adapter: str = "policy@base", **changes: Any) -> Completion:
    return rows.completion(name, user=user, adapter=adapter, created_at=1.0, **changes)


def thumb(name: str, completion_id: str, user: str | None) -> Feedback:
    return rows.thumb(name, completion_id, user=user, created_at=2.0)


def seal(
    folder: Path, splits: dict[str, list[tuple[str, str]]], seed: int, indexed: bool = True
) -> tuple[SnapshotManifest, str]:
    """A snapshot whose shards hold these (completion, user) rows; one not `indexed` was sealed by an older version."""
    uri = folder / f"snapshot-{seed}"
    uri.mkdir()
    shards = []
    for split, theirs in splits.items():
        held = [
            {
                "example_id": f"e-{c}",
                "completion_id": c,
                "user_hash": user_hash("s", user),
                "source": "thumb",
                "label": True,
                "adapter": "policy@base",
                "created_at": 2.0,
                "prompt_ids": [1],
                "completion_ids": [2],
            }
            for c, user in theirs
        ]
        data = parquet(pa.Table.from_pylist(held, schema=HOLDOUT_SCHEMA), 4, 16)
        name = f"{split}-00000.parquet"
        (uri / name).write_bytes(data)
        shards.append(Shard(name, split, len(held), hashlib.sha256(data).hexdigest()))
    draft = SnapshotManifest(
        "", seed, 1, 1, 0, 0, {}, {}, 1.0, 0.5, 2.0, 1.0, 1.0, 4, seed, "m", "", "", 16, tuple(shards), 2.0
    )
    manifest = dataclasses.replace(draft, id=content_id(draft))
    if indexed:
        write_index(str(uri), shards)
    (uri / "manifest.json").write_text(json.dumps(dataclasses.asdict(manifest)))
    return manifest, str(uri)


def adapter(number: int, snapshot: str, parent: str | None) -> AdapterVersion:
    return AdapterVersion(f"policy@v{number}-aaaaaa", number, 3.0, "u", "0" * 64, snapshot, parent, "policy@base", 8)
