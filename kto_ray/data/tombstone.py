"""What is left of a snapshot whose rows were deleted because they held a user's: its manifest and a file that says so.

The tombstone is written before the first shard goes and is one small file, so on object stores too a snapshot that
misses shards is never taken for a damaged one. It names the user by the hash that the shards had.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from kto_ray import paths
from kto_ray.records.snapshots import SnapshotManifest


@dataclass(frozen=True, slots=True)
class Tombstone:
    user_hash: str
    rows: Mapping[str, int]  # of the user, by split
    purged_at: float  # seconds since the epoch


class Purged(ValueError):
    """The rows of a snapshot are gone for good."""

    def __init__(self, uri: str, tombstone: Tombstone) -> None:
        when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(tombstone.purged_at))
        super().__init__(
            f"the snapshot at {uri!r} was purged of a user on {when}: its manifest is kept, its rows are deleted; "
            "train a new version, or have `kto-ray purge USER --retrain` rebuild it without the user"
        )
        self.uri, self.tombstone = uri, tombstone

    def __reduce__(self) -> tuple[type[Purged], tuple[str, Tombstone]]:
        return Purged, (self.uri, self.tombstone)  # it travels out of Ray tasks


def purge_rows(uri: str, manifest: SnapshotManifest, tombstone: Tombstone) -> None:
    """Delete the shards of a snapshot and their index. Called again after it was killed, it deletes the rest; the first
    tombstone stands, for it says whose rows there were."""
    if read_tombstone(uri) is None:
        data = json.dumps(asdict(tombstone), indent=1).encode()
        paths.write_atomic(paths.join(uri, paths.SNAPSHOT_TOMBSTONE), data)
    for name in (*(shard.name for shard in manifest.shards), paths.SNAPSHOT_ROWS):
        fs, path = paths.filesystem(paths.join(uri, name))
        if fs.exists(path):
            fs.rm(path)


def read_tombstone(uri: str) -> Tombstone | None:
    fs, path = paths.filesystem(paths.join(uri, paths.SNAPSHOT_TOMBSTONE))
    return Tombstone(**json.loads(fs.cat_file(path))) if fs.exists(path) else None
