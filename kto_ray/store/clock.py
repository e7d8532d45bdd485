"""The store's clock: what several machines decide by must not depend on whose clock is right."""

from __future__ import annotations

import sqlalchemy as sa


def now(tx: sa.Connection) -> sa.ColumnElement[float]:
    """Seconds since the epoch, as the database has it when a statement runs."""
    if tx.dialect.name == "sqlite":
        return sa.literal_column("(julianday('now') - 2440587.5) * 86400.0", sa.Double())
    return sa.cast(sa.extract("epoch", sa.func.clock_timestamp()), sa.Double())
