"""Adapter versions and the aliases that point at them; and with these, what every replica must hold."""

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
from kto_ray.store.schema import adapters
from kto_ray.store.schema import aliases as aliases_


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


def was_left(tx: sa.Connection, previous: str, champion: str) -> bool:
    """Whether the previous champion is one that a rollback or an alarm left, and not the one before a promotion, which
    is always of a newer version than what it replaces, and any of a newer one than the base model."""
    number = sa.select(adapters.c.number).where(adapters.c.name == champion).scalar_subquery()
    newer = sa.select(adapters.c.name).where(
        adapters.c.name == previous, adapters.c.number > sa.func.coalesce(number, 0)
    )
    return tx.execute(newer).first() is not None


def count(tx: sa.Connection) -> int:
    return int(tx.execute(sa.select(sa.func.count()).select_from(adapters)).scalar_one())


def _columns(version: AdapterVersion) -> dict[str, Any]:
    return {**asdict(version), "manifest": dict(version.manifest)}
