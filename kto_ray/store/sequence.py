"""The order of completions and feedback: one sequence of the store, for the clocks of gateways disagree."""

from __future__ import annotations

import sqlalchemy as sa

from kto_ray.store.schema import ORDER, feedback, sequence


def take(tx: sa.Connection, n: int = 1) -> list[int]:
    """The next `n` numbers, rising. On PostgreSQL two transactions may commit in another order than they took them:
    what must be told apart takes a lock first (`labels.lock`)."""
    if tx.dialect.name == "sqlite":
        moved = sequence.update().values(value=sequence.c.value + n).returning(sequence.c.value)
        last = int(tx.execute(moved).scalar_one())
        return list(range(last - n + 1, last + 1))
    numbers = sa.select(ORDER.next_value()).select_from(sa.func.generate_series(1, n).alias())
    return sorted(int(value) for value in tx.execute(numbers).scalars())


def last(tx: sa.Connection) -> int:
    """The last number that was taken."""
    if tx.dialect.name == "sqlite":
        return int(tx.execute(sa.select(sequence.c.value)).scalar_one())
    return int(tx.execute(sa.text(f"SELECT last_value FROM {ORDER.name}")).scalar_one())


def settled(tx: sa.Connection) -> int:
    """A number up to which the feedback is all there: nothing at or below it will still be committed."""
    if tx.dialect.name != "sqlite":  # whose writers are one after the other anyway
        tx.execute(sa.text(f"LOCK TABLE {feedback.name} IN SHARE MODE"))  # waits for who took a number and goes on
    return last(tx)
