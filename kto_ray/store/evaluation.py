"""The gate's reports, one an adapter."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from kto_ray.records.evaluation import GateDecision, GateReport
from kto_ray.store.schema import gates


def put(tx: sa.Connection, report: GateReport) -> None:
    """Record a report, in place of an earlier one of the same adapter."""
    tx.execute(gates.delete().where(gates.c.adapter == report.adapter))
    changed = {"decision": report.decision.value, "metrics": dict(report.metrics)}
    tx.execute(gates.insert().values(**{**asdict(report), **changed}))


def get(tx: sa.Connection, adapter: str) -> GateReport | None:
    row = tx.execute(sa.select(gates).where(gates.c.adapter == adapter)).mappings().first()
    return _report(row) if row else None


def every(tx: sa.Connection) -> dict[str, GateReport]:
    """The reports by adapter."""
    return {row["adapter"]: _report(row) for row in tx.execute(sa.select(gates)).mappings()}


def _report(row: Any) -> GateReport:
    changed = {"decision": GateDecision(row["decision"])} | {n: tuple(row[n]) for n in ("reasons", "answers")}
    return GateReport(**{**row, **changed})
