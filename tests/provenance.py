"""Small hand-made rows, snapshots and adapters, for tests that follow a thumb."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pyarrow as pa

from kto_ray.data.heads import user_hash
from kto_ray.data.shards import HOLDOUT_SCHEMA, parquet
from kto_ray.data.snapshot import _content_id
from kto_ray.types import AdapterVersion, Arm, Completion, Feedback, FeedbackKind, Shard, SnapshotManifest


def completion(
    name: str, user: str, adapter: str = "policy@base", arm: Arm = Arm.CHAMPION, rollout: str | None = None
) -> Completion:
    message = {"role": "user", "content": name}
    return Completion(name, 1.0, "policy", adapter, arm, (message,), "text", "stop", 3, 2, user=user, rollout=rollout)


def thumb(name: str, completion_id: str, user: str) -> Feedback:
    return Feedback(name, 2.0, FeedbackKind.THUMB, completion_id, user=user, value=True)


def seal(folder: Path, splits: dict[str, list[tuple[str, str]]], seed: int) -> tuple[SnapshotManifest, str]:
    """A snapshot whose shards hold these (completion, user) rows."""
    uri = folder / f"snapshot-{seed}"
    uri.mkdir()
    shards = []
    for split, rows in splits.items():
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
            for c, user in rows
        ]
        data = parquet(pa.Table.from_pylist(held, schema=HOLDOUT_SCHEMA), 4, 16)
        name = f"{split}-00000.parquet"
        (uri / name).write_bytes(data)
        shards.append(Shard(name, split, len(held), hashlib.sha256(data).hexdigest()))
    draft = SnapshotManifest(
        "", seed, 1, 1, 0, 0, {}, {}, 1.0, 0.5, 2.0, 1.0, 1.0, 4, seed, "m", "", "", 16, tuple(shards), 2.0
    )
    manifest = dataclasses.replace(draft, id=_content_id(draft))
    (uri / "manifest.json").write_text(json.dumps(dataclasses.asdict(manifest)))
    return manifest, str(uri)


def adapter(number: int, snapshot: str, parent: str | None) -> AdapterVersion:
    return AdapterVersion(f"policy@v{number}-aaaaaa", number, 3.0, "u", "0" * 64, snapshot, parent, "policy@base", 8)
