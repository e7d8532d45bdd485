"""A user's rows: counted, and erased."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from kto_ray.feedback.quarantine import Why
from kto_ray.records.feedback import Held
from kto_ray.store import labels, tallies
from kto_ray.store.schema import completions, feedback
from kto_ray.store.tallies import Tally


@dataclass(frozen=True, slots=True)
class UserRows:
    """What the store holds of a user."""

    completions: int  # that they asked for
    feedback: int  # that they gave, on anyone's completions or still pending
    feedback_of_others: int  # on their completions, with which it goes: it judges, and may quote, an answer to them


def rows_of(tx: sa.Connection, user: str) -> UserRows:
    def total(table: sa.Table, condition: sa.ColumnElement[bool]) -> int:
        return int(tx.execute(sa.select(sa.func.count()).select_from(table).where(condition)).scalar_one())

    others = feedback.c.user.is_(None) | (feedback.c.user != user)
    return UserRows(
        completions=total(completions, completions.c.user == user),
        feedback=total(feedback, feedback.c.user == user),
        feedback_of_others=total(feedback, _on_theirs(user) & others),
    )


def completions_of(tx: sa.Connection, user: str) -> list[str]:
    """The ids of what a user asked for."""
    return list(tx.execute(sa.select(completions.c.id).where(completions.c.user == user)).scalars())


def erase(tx: sa.Connection, user: str) -> UserRows:
    """Delete what the store holds of a user, and nothing else; returns what that was. Again is fine: it finds nothing.

    Snapshots and adapters are not looked at: see `kto_ray.provenance.erasure`.
    """
    # Feedback on a locked row waits (PostgreSQL), so none can arrive between the two deletions.
    asked = list(tx.execute(sa.select(completions.c.id).where(completions.c.user == user).with_for_update()).scalars())
    own, judged = _delete_feedback(tx, feedback.c.user == user)
    of_others, _ = _delete_feedback(tx, _on_theirs(user))
    tallies.add(tx, labels.refresh(tx, {*asked, *judged}))
    tx.execute(completions.delete().where(completions.c.user == user))
    tallies.add(tx, Tally(completions=-len(asked)))
    return UserRows(len(asked), own, of_others)


def _delete_feedback(tx: sa.Connection, condition: sa.ColumnElement[bool]) -> tuple[int, list[str]]:
    """How many events went, and the completions that they judged."""
    c = feedback.c
    columns = (c.completion_id, c.withdrawn_at, c.held, c.held_why)
    gone = tx.execute(feedback.delete().where(condition).returning(*columns)).all()
    change = Tally(
        stored=-len(gone),
        pending=-sum(row.completion_id is None and row.held is None for row in gone),
        withdrawn=-sum(row.withdrawn_at is not None for row in gone),
        held=-sum(row.held == Held.HELD.value for row in gone),
        strangers=-sum(row.held_why == Why.STRANGER.value for row in gone),
        orphans=-sum(row.held_why == Why.ORPHAN.value for row in gone),
    )
    tallies.add(tx, change)
    return len(gone), [row.completion_id for row in gone if row.completion_id is not None]


def _on_theirs(user: str) -> sa.ColumnElement[bool]:
    theirs = sa.select(completions.c.id).where(completions.c.user == user)
    return feedback.c.completion_id.in_(theirs) | feedback.c.named_completion.in_(theirs)
