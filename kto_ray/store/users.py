"""The rows of a user, or of one completion: counted, and erased."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from kto_ray.feedback.quarantine import Why
from kto_ray.records.erasure import ErasedRows, Subject
from kto_ray.records.feedback import Held
from kto_ray.store import labels, tallies, trials
from kto_ray.store.schema import completions, feedback
from kto_ray.store.tallies import Tally

CHUNK = 500  # completions, or events, of a transaction
NOTHING = ErasedRows(0, 0, 0)


def rows_of(tx: sa.Connection, subject: Subject) -> ErasedRows:
    def total(table: sa.Table, condition: sa.ColumnElement[bool]) -> int:
        return int(tx.execute(sa.select(sa.func.count()).select_from(table).where(condition)).scalar_one())

    asked, own = _asked(subject), _own(subject)
    ids = sa.select(completions.c.id).where(asked)
    on_theirs = feedback.c.completion_id.in_(ids) | feedback.c.named_completion.in_(ids)
    if subject.kind == "completion":  # also of one that never came
        on_theirs = on_theirs | (feedback.c.named_completion == subject.name)
    return ErasedRows(
        completions=total(completions, asked),
        feedback=total(feedback, own),
        feedback_of_others=total(feedback, on_theirs & sa.func.coalesce(~own, sa.true())),
    )


def completions_of(tx: sa.Connection, subject: Subject) -> list[str]:
    """The ids of what a user asked for; of a completion, its own."""
    return list(tx.execute(sa.select(completions.c.id).where(_asked(subject)).order_by(completions.c.id)).scalars())


def erase_some(tx: sa.Connection, subject: Subject) -> ErasedRows:
    """Delete some of what the store holds of a user or a completion, and nothing else; returns what that was. It is
    called, each time in a transaction of its own, until that is nothing: no writer waits for all of it.

    Snapshots, adapters and archives are not looked at: see `kto_ray.provenance.erasure`.
    """
    asked = list(tx.execute(_some(completions.c.id, _asked(subject))).scalars())
    on_theirs = feedback.c.completion_id.in_(asked) | feedback.c.named_completion.in_(asked)
    if asked or subject.kind == "completion":
        if subject.kind == "completion":
            on_theirs = on_theirs | (feedback.c.named_completion == subject.name)
        # Feedback on a locked row waits (PostgreSQL), so none can arrive between the deletions.
        tx.execute(sa.select(completions.c.id).where(completions.c.id.in_(asked)).with_for_update()).all()
        gone = _delete_feedback(tx, on_theirs)
        tallies.add(tx, labels.refresh(tx, asked))
        tx.execute(completions.delete().where(completions.c.id.in_(asked)))
        tallies.add(tx, Tally(completions=-len(asked)))
        own = sum(subject.kind == "user" and row.user == subject.name for row in gone)
        return ErasedRows(len(asked), own, len(gone) - own)
    if subject.kind == "user":
        trials.forget(tx, subject.name, f"erased-{secrets.token_hex(8)}")
    events = list(tx.execute(_some(feedback.c.id, _own(subject))).scalars())
    judged = tx.execute(sa.select(feedback.c.completion_id).where(feedback.c.id.in_(events))).scalars()
    labels.lock(tx, [name for name in judged if name is not None])
    gone = _delete_feedback(tx, feedback.c.id.in_(events))
    tallies.add(tx, labels.refresh(tx, [row.completion_id for row in gone if row.completion_id is not None]))
    return ErasedRows(0, len(gone), 0)


def _some(column: sa.Column[str], condition: sa.ColumnElement[bool]) -> sa.Select[str]:
    return sa.select(column).where(condition).order_by(column).limit(CHUNK)


def _delete_feedback(tx: sa.Connection, condition: sa.ColumnElement[bool]) -> Sequence[Any]:
    c = feedback.c
    columns = (c.completion_id, c.user, c.withdrawn_at, c.held, c.held_why)
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
    return gone


def _asked(subject: Subject) -> sa.ColumnElement[bool]:
    return completions.c.user == subject.name if subject.kind == "user" else completions.c.id == subject.name


def _own(subject: Subject) -> sa.ColumnElement[bool]:
    return feedback.c.user == subject.name if subject.kind == "user" else sa.false()
