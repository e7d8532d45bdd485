"""Snapshots, adapter versions, gate reports and aliases; and with these, what every replica must hold."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from kto_ray.records.adapters import (
    CHALLENGER,
    CHAMPION,
    PREVIOUS,
    AdapterVersion,
)
from kto_ray.records.evaluation import GateDecision, GateReport
from kto_ray.records.snapshots import SnapshotManifest
from kto_ray.store.schema import adapters, gates, snapshots
from kto_ray.store.schema import aliases as aliases_


def insert_snapshot(tx: sa.Connection, manifest: SnapshotManifest, uri: str) -> None:
    """Add a snapshot; one that is there already (the same content) is left as it is."""
    if tx.execute(sa.select(snapshots.c.id).where(snapshots.c.id == manifest.id)).scalar() is None:
        tx.execute(
            snapshots.insert().values(
                id=manifest.id, created_at=manifest.created_at, uri=uri, manifest=asdict(manifest)
            )
        )


def snapshot_uri(tx: sa.Connection, snapshot: str) -> str | None:
    return tx.execute(sa.select(snapshots.c.uri).where(snapshots.c.id == snapshot)).scalar()


def every_snapshot(tx: sa.Connection) -> list[tuple[str, str]]:
    """(id, URI), oldest first."""
    query = sa.select(snapshots.c.id, snapshots.c.uri).order_by(snapshots.c.created_at)
    return [(row.id, row.uri) for row in tx.execute(query)]


def insert(tx: sa.Connection, version: AdapterVersion) -> None:
    tx.execute(adapters.insert().values(**_columns(version)))


def get(tx: sa.Connection, name: str) -> AdapterVersion | None:
    row = tx.execute(sa.select(adapters).where(adapters.c.name == name)).mappings().first()
    return AdapterVersion(**row) if row else None


def every(tx: sa.Connection) -> list[AdapterVersion]:
    return [AdapterVersion(**row) for row in tx.execute(sa.select(adapters).order_by(adapters.c.number)).mappings()]


def next_number(tx: sa.Connection) -> int:
    return int(tx.execute(sa.select(sa.func.coalesce(sa.func.max(adapters.c.number), 0))).scalar_one()) + 1


def aliases(tx: sa.Connection, base_name: str) -> dict[str, str]:
    """alias -> adapter name. The champion is the base model before the first promotion."""
    return {CHAMPION: base_name} | {row.alias: row.adapter for row in tx.execute(sa.select(aliases_))}


def set_alias(tx: sa.Connection, alias: str, adapter: str | None, now: float) -> None:
    """Point an alias at an adapter, or drop it with None. Atomic with the rest of the transaction."""
    tx.execute(aliases_.delete().where(aliases_.c.alias == alias))
    if adapter is not None:
        tx.execute(aliases_.insert().values(alias=alias, adapter=adapter, changed_at=now))


def desired(tx: sa.Connection) -> list[AdapterVersion]:
    """The adapters that every replica must hold: champion, challenger and previous champion, without the base."""
    wanted = sa.select(aliases_.c.adapter).where(aliases_.c.alias.in_([CHAMPION, CHALLENGER, PREVIOUS]))
    query = sa.select(adapters).where(adapters.c.name.in_(wanted)).order_by(adapters.c.number)
    return [AdapterVersion(**row) for row in tx.execute(query).mappings()]


def insert_gate(tx: sa.Connection, report: GateReport) -> None:
    tx.execute(gates.delete().where(gates.c.adapter == report.adapter))
    tx.execute(
        gates.insert().values(
            adapter=report.adapter,
            created_at=report.created_at,
            snapshot=report.snapshot,
            decision=report.decision.value,
            reasons=list(report.reasons),
            metrics=dict(report.metrics),
            answers=[dict(a) for a in report.answers],
        )
    )


def count(tx: sa.Connection) -> int:
    return int(tx.execute(sa.select(sa.func.count()).select_from(adapters)).scalar_one())


def every_gate(tx: sa.Connection) -> dict[str, GateReport]:
    """The reports by adapter."""
    return {row["adapter"]: _report(row) for row in tx.execute(sa.select(gates)).mappings()}


def get_gate(tx: sa.Connection, adapter: str) -> GateReport | None:
    row = tx.execute(sa.select(gates).where(gates.c.adapter == adapter)).mappings().first()
    return _report(row) if row else None


def _report(row: Any) -> GateReport:
    return GateReport(
        adapter=row["adapter"],
        snapshot=row["snapshot"],
        created_at=row["created_at"],
        decision=GateDecision(row["decision"]),
        reasons=tuple(row["reasons"]),
        metrics=row["metrics"],
        answers=tuple(row["answers"]),
    )


def _columns(version: AdapterVersion) -> dict[str, Any]:
    return {**asdict(version), "manifest": dict(version.manifest)}
