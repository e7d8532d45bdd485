"""Which completion a thumb or an edit means; what comes before its completion is pending, and is joined when that comes
or, where two transactions missed each other, afterwards."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa

from kto_ray.records.completions import ExternalRef
from kto_ray.records.feedback import Feedback
from kto_ray.store import labels, tallies
from kto_ray.store.schema import completions, feedback
from kto_ray.store.tallies import Tally

LOOK = 1000  # pending events at once


def resolve(tx: sa.Connection, event: Feedback) -> str | None:
    """The id of the completion that an event names, None where it is not known yet."""
    if event.completion_id is not None:
        query = sa.select(completions.c.id).where(completions.c.id == event.completion_id)
        return tx.execute(query).scalar()
    return find_external(tx, event.external) if event.external else None


def find_external(tx: sa.Connection, ref: ExternalRef) -> str | None:
    """The id of the newest completion with this external reference."""
    query = (
        sa.select(completions.c.id)
        .where(
            completions.c.external_system == ref.system,
            completions.c.external_conversation == ref.conversation,
            completions.c.external_message == ref.message,
        )
        .order_by(completions.c.seq.desc())
        .limit(1)
    )
    return tx.execute(query).scalar()


def arrived(tx: sa.Connection, completion_id: str, external: ExternalRef | None) -> Tally:
    """Join the feedback that was waiting for a new completion; returns by how much the totals change."""
    waiting = feedback.c.named_completion == completion_id
    if external:
        waiting = waiting | sa.and_(
            feedback.c.external_system == external.system,
            feedback.c.external_conversation == external.conversation,
            feedback.c.external_message == external.message,
        )
    pending = feedback.c.completion_id.is_(None)
    joined = tx.execute(feedback.update().where(pending, waiting).values(completion_id=completion_id)).rowcount
    return Tally(pending=-joined) + labels.refresh(tx, [completion_id]) if joined else Tally()


def overlooked(tx: sa.Connection, after: str = "") -> tuple[dict[str, str], str]:
    """Pending events whose completion is there: two concurrent PostgreSQL transactions can miss each other.

    Looks at the next `LOOK` pending events behind the id `after`, in a reading transaction.

    Returns:
        Event id -> completion id, and where to go on; "" when all have been looked at.
    """
    batch = (
        sa.select(feedback)
        .where(feedback.c.completion_id.is_(None), feedback.c.id > after)
        .order_by(feedback.c.id)
        .limit(LOOK)
        .subquery()
    )
    same = (
        (completions.c.external_system == batch.c.external_system)
        & (completions.c.external_conversation == batch.c.external_conversation)
        & (completions.c.external_message == batch.c.external_message)
    )
    newest = sa.select(completions.c.id).where(same).order_by(completions.c.seq.desc()).limit(1)
    named = sa.select(completions.c.id).where(completions.c.id == batch.c.named_completion)
    means = sa.func.coalesce(
        named.scalar_subquery(),
        sa.case((batch.c.named_completion.is_(None), newest.correlate(batch).scalar_subquery())),
    )
    rows = tx.execute(sa.select(batch.c.id, means).order_by(batch.c.id)).all()
    return {row[0]: row[1] for row in rows if row[1] is not None}, rows[-1][0] if len(rows) == LOOK else ""


def join(tx: sa.Connection, found: Mapping[str, str]) -> int:
    """Join events (id -> completion id) that are still pending; returns how many."""
    joined = 0
    labels.lock(tx, found.values())
    for event, completion_id in found.items():
        still = (feedback.c.id == event) & feedback.c.completion_id.is_(None)
        joined += tx.execute(feedback.update().where(still).values(completion_id=completion_id)).rowcount
    tallies.add(tx, Tally(pending=-joined) + labels.refresh(tx, found.values()))
    return joined
