"""Which adapters learnt from rows that were erased: those trained on a purged snapshot, and what started from these."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from kto_ray.data.tombstone import read_tombstone
from kto_ray.records.adapters import AdapterVersion


def learnt_from(every: Iterable[AdapterVersion], purged: Collection[str]) -> tuple[AdapterVersion, ...]:
    """Of all versions, oldest first, those trained on one of these snapshots, or from a version that was."""
    found: dict[str, AdapterVersion] = {}
    for version in every:
        if version.snapshot in purged or version.reference in found:
            found[version.name] = version
    return tuple(found.values())


def tainted(
    every: Sequence[AdapterVersion], sealed: Mapping[str, str], names: Collection[str | None], snapshot: str | None
) -> frozenset[str]:
    """Of the adapters `names`, and of one snapshot, what erased rows are, or were, in. Only what these need is read.

    Args:
        every: all versions, oldest first.
        sealed: the URIs of snapshots by id.
    """
    line = _with_ancestors(every, names)
    wanted = {version.snapshot for version in line} | {snapshot}
    purged = {name for name, uri in sealed.items() if name in wanted and _purged(uri)}
    return frozenset(version.name for version in learnt_from(line, purged)) | (purged & {snapshot})


def _with_ancestors(every: Sequence[AdapterVersion], names: Collection[str | None]) -> list[AdapterVersion]:
    """Those of these names and whatever they were trained from, oldest first."""
    wanted = set(names)
    line = []
    for version in reversed(every):
        if version.name in wanted:
            wanted.add(version.reference)
            line.append(version)
    return line[::-1]


def _purged(uri: str) -> bool:
    grave = read_tombstone(uri)
    return grave is not None and not grave.expired
