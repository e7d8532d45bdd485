"""Who acts: one controller at a time, by a lease in the store, also while Ray Serve replaces one by another.

It is taken before anything is looked at, and whatever is done then keeps it: in a transaction that finds, whatever the
clocks of machines say, that nobody has taken it since. Whoever stood still for too long has decided on what is past;
also where the one who acted meanwhile is gone again.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import sqlalchemy as sa

from kto_ray.store import Store, leases

RENEW_S = 2.0


class LostLease(RuntimeError):
    """Another controller acts; this one waits. `holder`: which, None where its lease has just expired."""

    def __init__(self, holder: leases.Holder | None) -> None:
        who = f"process {holder.pid} on {holder.node}, {holder.ago_s:.1f} s ago" if holder else "one that is gone"
        super().__init__(f"another controller acts: the lease was last renewed by {who}")
        self.holder = holder


class Lease:
    """That of a controller."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._holder = f"{os.uname().nodename}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._renewed = float("-inf")

    def hold(self) -> bool:
        """Take or renew it, now and then; whether it was taken, so that another may have acted since it was held last.

        Raises:
            LostLease: another has it.
        """
        began = time.monotonic()
        if began - self._renewed <= RENEW_S:
            return False
        with self._store.write() as tx:
            kept = leases.keep(tx, leases.CONTROLLER, self._holder)
            if not kept and not leases.take(tx, leases.CONTROLLER, self._holder, os.getpid()):
                self._lost(tx)
        self._renewed = began
        return not kept

    @contextmanager
    def act(self) -> Iterator[sa.Connection]:
        """A transaction that can be committed only by who has held it since before they looked.

        Raises:
            LostLease: another has taken it.
        """
        began = time.monotonic()
        with self._store.write() as tx:
            if not leases.keep(tx, leases.CONTROLLER, self._holder):
                self._lost(tx)
            yield tx
        self._renewed = began

    def _lost(self, tx: sa.Connection) -> NoReturn:
        self._renewed = float("-inf")
        raise LostLease(leases.holder(tx, leases.CONTROLLER))
