"""Which completion a thumb or an edit means; what comes before its completion is pending, and is joined when that comes
or, where two transactions missed each other, afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sqlalchemy as sa

from kto_ray.records.completions import Completion, ExternalRef
from kto_ray.records.feedback import Feedback
from kto_ray.store import labels, tallies
from kto_ray.store.among import among
from kto_ray.store.schema import completions, feedback
from kto_ray.store.tallies import Tally

LOOK = 1000  # pending events at once


def resolve(tx: sa.Connection, events: Sequence[Feedback]) -> list[str | None]:
    """The id of the completion that each event names, None where it is not known yet."""
    named = {event.completion_id for event in events if event.completion_id is not None}
    known = (
        set(tx.execute(sa.select(completions.c.id).where(among(tx, completions.c.id, named))).scalars())
        if named
        else ()
    )
    meant = _newest(tx, {event.external for event in events if event.external is not None})
    return [
        meant.get(event.external)
        if event.completion_id is None
        else event.completion_id
        if event.completion_id in known
        else None
        for event in events
    ]


def find_external(tx: sa.Connection, ref: ExternalRef) -> str | None:
    """The id of the newest completion with this external reference."""
    return _newest(tx, {ref}).get(ref)


def _newest(tx: sa.Connection, refs: set[ExternalRef]) -> dict[ExternalRef | None, str]:
    if not refs:
        return {}
    query = sa.select(*_reference(completions), completions.c.id).where(_among(completions, refs))
    found = tx.execute(query.order_by(completions.c.seq)).all()
    return {ExternalRef(*row[:3]): row[3] for row in found}


def _reference(table: sa.Table) -> tuple[sa.Column[str], sa.Column[str], sa.Column[str]]:
    return table.c.external_system, table.c.external_conversation, table.c.external_message


def _among(table: sa.Table, refs: set[ExternalRef]) -> sa.ColumnElement[bool]:
    return sa.tuple_(*_reference(table)).in_([(ref.system, ref.conversation, ref.message) for ref in refs])


def arrived(tx: sa.Connection, fresh: Sequence[Completion]) -> int:
    """Join the feedback that was waiting for new completions; returns how much that was."""
    by_id = {completion.id: completion.id for completion in fresh}
    by_reference = {completion.external: completion.id for completion in fresh if completion.external is not None}
    waits: sa.ColumnElement[bool] = among(tx, feedback.c.named_completion, by_id)
    if by_reference:
        waits = waits | _among(feedback, set(by_reference))
    columns = (feedback.c.id, feedback.c.named_completion, *_reference(feedback))
    waiting = tx.execute(sa.select(*columns).where(feedback.c.completion_id.is_(None), waits)).all()
    return join(tx, {row[0]: by_id.get(row[1]) or by_reference[ExternalRef(*row[2:])] for row in waiting})


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
    if not found:
        return joined
    labels.lock(tx, found.values())
    for event, completion_id in found.items():
        still = (feedback.c.id == event) & feedback.c.completion_id.is_(None)
        joined += tx.execute(feedback.update().where(still).values(completion_id=completion_id)).rowcount
    tallies.add(tx, Tally(pending=-joined) + labels.refresh(tx, found.values()))
    return joined
