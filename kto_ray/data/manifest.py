"""The manifest of a snapshot: what it holds and by which settings, written last, named by its content."""

from __future__ import annotations

import dataclasses
import hashlib
import json

from kto_ray import paths
from kto_ray.records.snapshots import Shard, SnapshotManifest


def content_id(manifest: SnapshotManifest) -> str:
    """Of equal rows, in one order, under equal settings: the same."""
    facts = dataclasses.asdict(manifest)
    del facts["id"], facts["created_at"], facts["newest_seq"]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def write_manifest(uri: str, manifest: SnapshotManifest) -> None:
    """From here on the snapshot is finished."""
    data = json.dumps(dataclasses.asdict(manifest), indent=1, sort_keys=True).encode()
    paths.write_atomic(paths.join(uri, paths.SNAPSHOT_MANIFEST), data)


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
    if content_id(manifest) != manifest.id:
        raise ValueError(
            f"snapshot manifest at {uri!r} was changed: it names {manifest.id}, its content is "
            f"{content_id(manifest)}; freeze the snapshot again"
        )
    return manifest
