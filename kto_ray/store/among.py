"""`column IN (...)` with one parameter: the same statement for any number of values, so that it is compiled once and
PostgreSQL prepares it."""

from __future__ import annotations

import json
from collections.abc import Iterable

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY


def values(tx: sa.Connection, of: Iterable[str]) -> sa.TableValuedAlias:
    """Values as a table of one column, `value`."""
    if tx.dialect.name == "sqlite":
        return sa.func.json_each(json.dumps(list(of))).table_valued("value")
    return sa.func.unnest(sa.literal(list(of), ARRAY(sa.String))).table_valued("value").render_derived()


def among(tx: sa.Connection, column: sa.Column[str], of: Iterable[str]) -> sa.ColumnElement[bool]:
    if tx.dialect.name == "sqlite":
        return column.in_(sa.select(values(tx, of).c.value))
    return column == sa.any_(sa.literal(list(of), ARRAY(sa.String)))
