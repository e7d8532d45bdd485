"""Sealed snapshots: their manifests and where their files are."""

from __future__ import annotations

from dataclasses import asdict

import sqlalchemy as sa

from kto_ray.records.snapshots import SnapshotManifest
from kto_ray.store.schema import snapshots


def insert(tx: sa.Connection, manifest: SnapshotManifest, uri: str) -> None:
    """Add a snapshot; one that is there already (the same content) is left as it is."""
    if uri_of(tx, manifest.id) is None:
        columns = {"id": manifest.id, "created_at": manifest.created_at, "uri": uri, "manifest": asdict(manifest)}
        tx.execute(snapshots.insert().values(**columns))


def uri_of(tx: sa.Connection, snapshot: str | None) -> str | None:
    return tx.execute(sa.select(snapshots.c.uri).where(snapshots.c.id == snapshot)).scalar()


def every(tx: sa.Connection) -> list[tuple[str, str]]:
    """(id, URI), oldest first."""
    query = sa.select(snapshots.c.id, snapshots.c.uri).order_by(snapshots.c.created_at)
    return [(row.id, row.uri) for row in tx.execute(query)]
