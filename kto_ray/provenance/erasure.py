"""Take a user out of all that is kept of them, and train again what was trained on it.

Rows leave the store and the affected snapshots lose their shards. Adapters keep their weights: one may be answering at
this moment, and only a better one replaces it. What replaces it is trained on the snapshot that would have been sealed
then, had the user never been there.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import sqlalchemy as sa

from kto_ray.adapters.publish import as_trained
from kto_ray.config import Config
from kto_ray.data.seal import seal
from kto_ray.data.snapshot import load_manifest
from kto_ray.data.tombstone import Tombstone, purge_rows, read_tombstone
from kto_ray.paths import SNAPSHOT_MANIFEST, Paths, filesystem, join
from kto_ray.provenance.lineage import Held, held_rows
from kto_ray.records.adapters import AdapterVersion
from kto_ray.records.rounds import Stage
from kto_ray.records.snapshots import SnapshotManifest
from kto_ray.records.users import user_hash
from kto_ray.store import Store, adapters, rounds, snapshots, users


@dataclass(frozen=True, slots=True)
class Reach:
    """How far a user reaches. `adapters` are those trained on one of `snapshots`, oldest first; `unknown` are the
    snapshots purged of another user before, which cannot be asked any more."""

    user: str
    rows: users.UserRows
    snapshots: tuple[Held, ...]
    adapters: tuple[AdapterVersion, ...]
    aliases: Mapping[str, str]  # alias -> adapter name
    unknown: tuple[str, ...]

    def served_as(self, version: AdapterVersion) -> list[str]:
        return [alias for alias, name in self.aliases.items() if name == version.name]


def reach_of(tx: sa.Connection, config: Config, user: str) -> Reach:
    """What a purge of a user takes, or has taken before: a purge that was killed is found again, and ends.

    Raises:
        ValueError: neither the store nor a snapshot knows the user, or a snapshot is being sealed just now.
    """
    _refuse_while_sealing(tx)
    found = users.rows_of(tx, user)
    held = held_rows(_snapshots(tx, config), user_hash(config.salt, user), users.completions_of(tx, user))
    theirs = tuple(h for h in held if h.rows)
    if found == users.UserRows(0, 0, 0) and not theirs:
        raise ValueError(f"user {user!r} is in neither the store nor a snapshot; there is nothing to purge")
    ids = {h.snapshot for h in theirs}
    return Reach(
        user=user,
        rows=found,
        snapshots=theirs,
        adapters=tuple(v for v in adapters.every(tx) if v.snapshot in ids),
        aliases=adapters.aliases(tx, config.base_name),
        unknown=tuple(h.snapshot for h in held if h.rows is None),
    )


def purge(store: Store, config: Config, user: str) -> Reach:
    """Erase a user from the store and delete the shards that hold rows of theirs; returns what that took.

    Snapshots go first: the store knows which completions were the user's until its one transaction ends. Killed
    between, it is called again.

    Raises:
        ValueError: as `reach_of`.
    """
    with store.read() as tx:
        reach = reach_of(tx, config, user)
        asked = users.completions_of(tx, user)
    _bury(config, user, reach.snapshots)
    with store.write() as tx:
        _refuse_while_sealing(tx)
        erased = users.erase(tx, user)
    with store.read() as tx:
        there = _snapshots(tx, config)
    late = held_rows(there, user_hash(config.salt, user), asked)  # sealed while we were looking
    _bury(config, user, tuple(h for h in late if h.rows and h.purged_at is None))
    _sweep(config)
    return replace(reach, rows=erased)


def to_replace(reach: Reach) -> list[AdapterVersion]:
    """The affected versions behind an alias, or the newest affected one where none is."""
    served = [version for version in reach.adapters if reach.served_as(version)]
    return served or list(reach.adapters[-1:])


def replacing(config: Config, version: AdapterVersion) -> Config:
    """The settings that a version's replacement is trained with: its own, but from the base model, for a champion that
    it started from may know the user too."""
    sealed = as_trained(config, version)
    return sealed.model_copy(update={"kto": sealed.kto.model_copy(update={"reference": "base"})})


def rebuild(store: Store, config: Config, version: AdapterVersion) -> tuple[SnapshotManifest, AdapterVersion | None]:
    """Seal a version's snapshot anew from what the store holds now of the feedback that it was made of; Ray must be up.

    Returns:
        The manifest, and the version that was trained on it with the same settings if there is one already.

    Raises:
        ValueError: what is left cannot be trained on (see `freeze`).
    """
    sealed = replacing(config, version)
    with store.read() as tx:
        uri = snapshots.uri_of(tx, version.snapshot)
    assert uri is not None, "an affected version has a snapshot"
    manifest = seal(sealed, until=load_manifest(uri).newest_seq)
    with store.read() as tx:
        twins = [v for v in adapters.every(tx) if v.snapshot == manifest.id and as_trained(config, v) == sealed]
    return manifest, twins[-1] if twins else None


def _snapshots(tx: sa.Connection, config: Config) -> list[tuple[str, str]]:
    """(id, URI) of all that the store knows, and of those sealed by a process that was killed before it said so."""
    home = Paths(config.home)
    fs, folder = filesystem(home.snapshots())
    sealed = [str(path).split("/")[-2] for path in fs.glob(join(folder, "*", SNAPSHOT_MANIFEST))]
    return list(({name: home.snapshot(name) for name in sealed} | dict(snapshots.every(tx))).items())


def _sweep(config: Config) -> None:
    """Delete what killed freezes left, staged or not published to the end, and what killed purges left: it may hold
    anyone's rows."""
    home = Paths(config.home)
    fs, folder = filesystem(home.snapshots())
    parts = fs.ls(folder, detail=False) if fs.exists(folder) else []
    torn = [str(part) for part in parts if not fs.exists(join(part, SNAPSHOT_MANIFEST))]
    leftovers = [filesystem(home.staging())[1], *torn]
    for leftover in leftovers:
        if fs.exists(leftover):
            fs.rm(leftover, recursive=True)
    for name in (str(part).split("/")[-1] for part in parts if str(part) not in leftovers):
        uri = home.snapshot(name)
        if grave := read_tombstone(uri):
            purge_rows(uri, load_manifest(uri), grave)


def _refuse_while_sealing(tx: sa.Connection) -> None:
    current = rounds.current(tx)
    if current is not None and current.stage is Stage.SNAPSHOT:
        raise ValueError(
            f"round {current.id} is sealing a snapshot, which may hold the user's rows: try again when it trains "
            "(`kto-ray status` shows the stage)"
        )


def _bury(config: Config, user: str, snapshots: tuple[Held, ...]) -> None:
    for held in snapshots:
        assert held.rows, "only snapshots that hold rows of the user"
        at = held.purged_at if held.purged_at is not None else time.time()
        grave = Tombstone(user_hash(config.salt, user), held.rows, at)
        purge_rows(held.uri, load_manifest(held.uri), grave)
