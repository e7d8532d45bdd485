"""Who may make and delete the files that rows name, snapshots and archives: one at a time, by a lease.

Sealing a snapshot takes hours where there is much to seal, and an erasure must not wait for it: it takes the lease
away. Who has lost it publishes nothing, for what they read may be erased by now.

A process may stand still for longer than a lease lasts, and go on. So what makes a file count, or lets one go, is done
in a transaction that holds the lease's row (`naming`): nobody else has the files until that ends.
"""

from __future__ import annotations

import enum
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from kto_ray.store import clock
from kto_ray.store.database import Store
from kto_ray.store.schema import leases

FILES = "files"  # the lease's name
TTL_S = 30.0
RENEW_S = 5.0
POLL_S = 0.2


class Work(enum.StrEnum):
    """What for. Only from who is sealing can it be taken away."""

    SEALING = "sealing"
    PUBLISHING = "publishing"  # of what was sealed: seconds
    ARCHIVING = "archiving"
    ERASING = "erasing"


class Busy(RuntimeError):
    """Another has the files, and kept them for longer than one would wait."""


class Lost(Busy):
    """The files were taken away: what was read must not be published, and what was written not be named."""


class Custody:
    """A lease that is held, and renewed in the background until `custody` ends."""

    def __init__(self, store: Store, work: Work) -> None:
        self._store = store
        self._name = f"{os.uname().nodename}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._work = work
        self._mutex = threading.Lock()  # one thread renews while the other goes on to publish
        self._lost = False

    def take(self) -> Work | None:
        """Take the lease; what another does with it where that is not to be had."""
        with self._store.write() as tx:
            now, mine = float(tx.execute(sa.select(clock.now(tx))).scalar_one()), self._holder(self._work)
            row = tx.execute(sa.select(leases).where(leases.c.name == FILES).with_for_update()).first()
            values = {"holder": mine, "pid": os.getpid(), "expires_at": now + TTL_S}
            if row is None:
                try:
                    with tx.begin_nested():
                        tx.execute(leases.insert().values(name=FILES, **values))
                except sa.exc.IntegrityError:  # another took it between the two statements
                    return Work.SEALING
                return None
            theirs = Work(str(row.holder).rpartition(":")[2])
            # One that expires later than any can is of a clock that has jumped back since.
            if now <= row.expires_at <= now + TTL_S and not (self._work is Work.ERASING and theirs is Work.SEALING):
                return theirs
            tx.execute(leases.update().where(leases.c.name == FILES).values(**values))
        return None

    def check(self) -> None:
        """Raises:
        Lost: what was read must not be published.
        """
        if self._lost:
            raise Lost(
                "a user or a completion was erased while the snapshot was sealed, and may be among what was read; "
                "it is left, and sealing begins anew"
            )

    def publish(self) -> None:
        """From now on nobody takes it away: what is read becomes a snapshot.

        Raises:
            Lost: too late.
        """
        self._keep(Work.PUBLISHING)
        self.check()

    @contextmanager
    def naming(self) -> Iterator[sa.Connection]:
        """A transaction in which files come to count, or go: nobody takes the lease before it ends.

        Raises:
            Lost: another has taken it; nothing may be named.
        """
        with self._store.write() as tx:
            renewed = leases.update().where(self._mine()).values(expires_at=clock.now(tx) + TTL_S)
            if tx.execute(renewed).rowcount == 0:
                raise Lost(
                    f"{self._work} stood still for longer than {TTL_S:.0f} s, and another has taken the files since; "
                    "nothing was changed, try again"
                )
            yield tx

    @contextmanager
    def publishing(self) -> Iterator[None]:
        """As `publish`, until what was read is a snapshot.

        Raises:
            Lost: too late.
        """
        self.publish()
        with self.naming():
            yield

    def renew(self) -> None:
        self._keep(self._work)

    def release(self) -> None:
        with self._mutex, self._store.write() as tx:
            tx.execute(leases.delete().where(self._mine()))

    def _keep(self, work: Work) -> None:
        with self._mutex:
            with self._store.write() as tx:
                values = {"holder": self._holder(work), "expires_at": clock.now(tx) + TTL_S}
                self._lost = tx.execute(leases.update().where(self._mine()).values(**values)).rowcount == 0
            self._work = work

    def _mine(self) -> sa.ColumnElement[bool]:
        return (leases.c.name == FILES) & (leases.c.holder == self._holder(self._work))

    def _holder(self, work: Work) -> str:
        return f"{self._name}:{work}"


@contextmanager
def custody(
    store: Store, work: Work, patience_s: float = float("inf"), tell: Callable[[str], None] = lambda _: None
) -> Iterator[Custody]:
    """Have the files for a piece of work; waits until they are free.

    Raises:
        Busy: they were not within `patience_s`.
    """
    mine = Custody(store, work)
    deadline = time.monotonic() + patience_s
    while (theirs := mine.take()) is not None:
        if time.monotonic() > deadline:
            raise Busy(f"{theirs} goes on in another process, and only one may have the files; try again")
        tell("wait")
        time.sleep(POLL_S)
    done = threading.Event()
    keeper = threading.Thread(target=_renewing, args=(mine, done), daemon=True)
    keeper.start()
    try:
        yield mine
    finally:
        done.set()
        keeper.join()
        mine.release()


def _renewing(mine: Custody, done: threading.Event) -> None:
    while not done.wait(RENEW_S):
        try:
            mine.renew()
        except sa.exc.SQLAlchemyError:  # the store is away; the lease stands for a while
            continue
