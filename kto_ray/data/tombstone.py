"""What is left of a snapshot whose rows were deleted: its manifest and a file that says for whose sake.

The tombstone is written before the first shard goes and is one small file, so on object stores too a snapshot that
misses shards is never taken for a damaged one. It names a user by the hash that the shards had.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from kto_ray import paths
from kto_ray.records.snapshots import SnapshotManifest


@dataclass(frozen=True, slots=True)
class Tombstone:
    """For a user's sake, or one completion's; for nobody's where retention let the snapshot go: then the index of its
    rows is kept."""

    user_hash: str | None
    rows: Mapping[str, int]  # of the user or the completion, by split
    purged_at: float  # seconds since the epoch
    completion: str | None = None

    @property
    def expired(self) -> bool:
        return self.user_hash is None and self.completion is None

    def is_of(self, user: str | None, asked: Sequence[str]) -> bool:
        """Whether it is that of a user (their hash), or else of one of the completions `asked`."""
        if user is not None:
            return self.user_hash == user
        return self.completion in asked


class Purged(ValueError):
    """The rows of a snapshot are gone for good."""

    def __init__(self, uri: str, tombstone: Tombstone) -> None:
        when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(tombstone.purged_at))
        whose = "a user" if tombstone.user_hash else "a completion"
        why = f"expired on {when} (retention.snapshots)" if tombstone.expired else f"was purged of {whose} on {when}"
        mend = "" if tombstone.expired else ", or have `kto-ray erase USER --retrain` rebuild it without the user"
        super().__init__(
            f"the snapshot at {uri!r} {why}: its manifest is kept, its rows are deleted; train a new version{mend}"
        )
        self.uri, self.tombstone = uri, tombstone

    def __reduce__(self) -> tuple[type[Purged], tuple[str, Tombstone]]:
        return Purged, (self.uri, self.tombstone)  # it travels out of Ray tasks


def purge_rows(uri: str, manifest: SnapshotManifest, tombstone: Tombstone) -> None:
    """Delete the shards of a snapshot, and their index unless it expired. Called again after it was killed, it deletes
    the rest; the first tombstone stands, for it says whose rows there were, but one of retention says nothing."""
    stands = read_tombstone(uri)
    if stands is None or (stands.expired and not tombstone.expired):
        stands = tombstone
        data = json.dumps(asdict(tombstone), indent=1).encode()
        paths.write_atomic(paths.join(uri, paths.SNAPSHOT_TOMBSTONE), data)
    index = [] if stands.expired else [paths.SNAPSHOT_ROWS]
    for name in (*(shard.name for shard in manifest.shards), *index):
        fs, path = paths.filesystem(paths.join(uri, name))
        if fs.exists(path):
            fs.rm(path)


def read_tombstone(uri: str) -> Tombstone | None:
    fs, path = paths.filesystem(paths.join(uri, paths.SNAPSHOT_TOMBSTONE))
    return Tombstone(**json.loads(fs.cat_file(path))) if fs.exists(path) else None


def refuse_purged(uri: str) -> None:
    """Raises:
    Purged: the snapshot's rows were deleted since it was opened.
    """
    if tombstone := read_tombstone(uri):
        raise Purged(uri, tombstone)
