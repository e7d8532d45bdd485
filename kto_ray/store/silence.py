"""A PostgreSQL connection that does not wait for ever: a server that hangs takes what is sent and never answers, and
neither its own timeouts nor those of TCP notice. Its errors say nothing of the rows that they are about."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.pq import TransactionStatus


class Connection(psycopg.Connection[Any]):
    """psycopg's, for which every answer of the server comes within `silence_s` or the connection is closed."""

    silence_s: float | None = None

    def wait(self, gen: Any, *args: Any, **named: Any) -> Any:
        """Raises:
        psycopg.OperationalError: the server has not answered; whether it did what it was asked is not known.
        """
        try:
            return super().wait(gen, *args, **{"timeout": self.silence_s, **named})
        except psycopg.Error as error:
            # A server's own error has a code; while it answers a pipeline, that is still active.
            if error.sqlstate is None and self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                self.pgconn.finish()  # its answer may still come, and must not be taken for another's
                raise psycopg.OperationalError(f"the server did not answer for {self.silence_s} s: {error}") from error
            if error.diag.message_detail is not None:  # what users wrote: errors are logged
                error.args = (error.diag.message_primary,)
            raise
