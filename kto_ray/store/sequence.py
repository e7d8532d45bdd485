"""The order of completions and feedback: one sequence of the store, for the clocks of gateways disagree."""

from __future__ import annotations

import sqlalchemy as sa

from kto_ray.store.schema import ORDER, feedback, sequence

_NUMBERS = f"SELECT nextval('{ORDER.name}') FROM generate_series(1, :n)"
# That deletes nothing, and holds the table's lock from before the first number on, without a statement more.
_OF_EVENTS = sa.text(f"WITH held AS (DELETE FROM {feedback.name} WHERE false) {_NUMBERS}")
_OF_ANSWERS = sa.text(_NUMBERS)


def take(tx: sa.Connection, n: int = 1, events: bool = True) -> list[int]:
    """The next `n` numbers, rising, of events or of completions. On PostgreSQL two transactions may commit in another
    order than they took them: what must be told apart takes a lock first (`labels.lock`)."""
    if tx.dialect.name == "sqlite":
        moved = sequence.update().values(value=sequence.c.value + n).returning(sequence.c.value)
        last = int(tx.execute(moved).scalar_one())
        return list(range(last - n + 1, last + 1))
    return sorted(int(value) for value in tx.execute(_OF_EVENTS if events else _OF_ANSWERS, {"n": n}).scalars())


def last(tx: sa.Connection) -> int:
    """The last number that was taken."""
    if tx.dialect.name == "sqlite":
        return int(tx.execute(sa.select(sequence.c.value)).scalar_one())
    taken = f"SELECT last_value - CASE WHEN is_called THEN 0 ELSE 1 END FROM {ORDER.name}"  # before the first it is 1
    return int(tx.execute(sa.text(taken)).scalar_one())


def settled(tx: sa.Connection) -> int:
    """A number up to which the feedback is all there: nothing at or below it will still be committed."""
    if tx.dialect.name == "sqlite":  # whose writers are one after the other anyway
        return last(tx)
    with tx.begin_nested() as moment:
        tx.execute(sa.text(f"LOCK TABLE {feedback.name} IN SHARE MODE"))  # waits for who has taken a number
        found = last(tx)
        moment.rollback()  # lets go of the lock: what is read by this number takes long, and nobody waits for it
    return found
