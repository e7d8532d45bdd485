"""Whose fault a database's error is: the store's, which may pass, or that of what was to be stored."""

from __future__ import annotations

import sqlalchemy as sa


def is_away(error: sa.exc.SQLAlchemyError) -> bool:
    """Whether it is the store's fault, whatever was asked of it: gone, hanging, locked, full or read-only."""
    if not isinstance(error, sa.exc.DBAPIError):
        return isinstance(error, sa.exc.TimeoutError)  # no connection was free
    state = _sqlstate(error)
    if state.startswith("54"):  # "program limit exceeded", an operational error too: the row is too large
        return False
    fault = isinstance(error, (sa.exc.OperationalError, sa.exc.InterfaceError))
    return fault or error.connection_invalidated or state == "25006"  # a server that became a read-only standby


def is_own_fault(error: BaseException) -> bool:
    """Whether what was to be stored can never be, whatever becomes of the store: a value that it does not take, an
    event beyond what one may say. All else may pass: a table that a migration moves, a grant that was taken away."""
    if isinstance(error, sa.exc.DBAPIError):
        values = isinstance(error, (sa.exc.DataError, sa.exc.IntegrityError))
        return values or _sqlstate(error).startswith(("22", "23", "54"))
    if isinstance(error, sa.exc.StatementError) and error.orig is not None:  # before the database saw it
        return is_own_fault(error.orig)
    return isinstance(error, (ValueError, OverflowError))


def lost_a_race(error: sa.exc.SQLAlchemyError) -> bool:
    """Whether the transaction is undone because another was in its way: a deadlock, a serialization failure."""
    return isinstance(error, sa.exc.DBAPIError) and _sqlstate(error).startswith("40")


def first_line(error: BaseException) -> str:
    """What went wrong, for a log; SQLAlchemy's errors go on with the statement."""
    return str(error).partition("\n")[0]


def _sqlstate(error: sa.exc.DBAPIError) -> str:
    """PostgreSQL's code of an error, "" where there is none."""
    return getattr(error.orig, "sqlstate", None) or ""
