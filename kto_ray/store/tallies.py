"""How much there is of everything, kept by increments: what is shown at every look must not walk the log.

A row of counters is locked until its writer commits, and on PostgreSQL a commit waits for the disk. So there are many
rows, a transaction adds to one of them as the last thing it does (`Store.write`), and a reader adds them up.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

import sqlalchemy as sa

from kto_ray.store.schema import TALLY_SLOTS, tallies


@dataclass(frozen=True, slots=True)
class Tally:
    """Numbers of rows, or by how many they change. `up`, `down` and `edits` are labels by verdict.

    `came` counts labels as they come, less those that go again before a round has begun: what it grew by since the
    newest round began are the labels that no round has seen. That older ones were withdrawn or erased does not count.
    """

    completions: int = 0
    stored: int = 0  # feedback events
    pending: int = 0  # of these, without a completion yet
    withdrawn: int = 0
    up: int = 0
    down: int = 0
    edits: int = 0
    came: int = 0
    held: int = 0  # events that wait for a person
    strangers: int = 0  # events of neither who received the answer nor a reviewer
    orphans: int = 0  # events whose completion never came

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(getattr(self, name) + getattr(other, name) for name in NAMES))

    @property
    def labels(self) -> int:
        return self.up + self.down + self.edits

    @property
    def desirable(self) -> int:
        """Examples that teach what to say: an edit holds one of each."""
        return self.up + self.edits

    @property
    def undesirable(self) -> int:
        return self.down + self.edits


CHANGE = "tally"  # of a connection's info: what its transaction has added so far
NAMES = tuple(field.name for field in fields(Tally))


@contextmanager
def gathered(tx: sa.Connection) -> Iterator[None]:
    """Gather what a transaction adds, and write it last: from then on others who drew the same row wait."""
    info = tx.info  # a connection that has broken has none any more
    info[CHANGE] = Tally()
    try:
        yield
        _write(tx, info[CHANGE])
    finally:
        del info[CHANGE]


@contextmanager
def savepoint(tx: sa.Connection) -> Iterator[None]:
    """A part of a writing transaction that fails alone, and then adds nothing."""
    info = tx.info
    before = info[CHANGE]
    try:
        with tx.begin_nested():
            yield
    except BaseException:
        info[CHANGE] = before
        raise


def add(tx: sa.Connection, change: Tally) -> None:
    """Change the totals with the rest of a writing transaction."""
    tx.info[CHANGE] += change


def _write(tx: sa.Connection, change: Tally) -> None:
    changed = {name: tallies.c[name] + by for name in NAMES if (by := getattr(change, name))}
    if changed:
        tx.execute(tallies.update().where(tallies.c.slot == random.randrange(TALLY_SLOTS)).values(**changed))


def total(tx: sa.Connection) -> Tally:
    """As the transaction sees it, with what it added itself."""
    sums = (sa.func.coalesce(sa.func.sum(tallies.c[name]), 0) for name in NAMES)
    own: Tally = tx.info.get(CHANGE, Tally())
    return Tally(*(int(value) for value in tx.execute(sa.select(*sums)).one())) + own
