"""Completions: insert once, read by id, by user and by adapter."""

from __future__ import annotations

import json
from collections.abc import Sequence

import sqlalchemy as sa

from kto_ray.config.capture import FeedbackSection
from kto_ray.records.completions import Completion, ExternalRef
from kto_ray.records.conversations import Conversation
from kto_ray.store import joining, sequence, tallies, trials
from kto_ray.store.among import among
from kto_ray.store.mapping import columns_of, completion_of
from kto_ray.store.schema import completions, feedback
from kto_ray.store.tallies import Tally

DEFAULT = FeedbackSection()
BEGINNING = 200  # characters of a text


def insert(tx: sa.Connection, completion: Completion, rules: FeedbackSection = DEFAULT) -> None:
    """Add a completion and join the feedback that was waiting for it; one that is known already stays as it is."""
    insert_all(tx, (completion,), rules)


def insert_all(tx: sa.Connection, come: Sequence[Completion], rules: FeedbackSection = DEFAULT) -> None:
    """As `insert` does, one after the other, in a few statements."""
    ids = [completion.id for completion in come]
    known = set(tx.execute(sa.select(completions.c.id).where(among(tx, completions.c.id, ids))).scalars())
    fresh = [completion for completion in come if completion.id not in known]
    if not fresh:
        return
    numbers = sequence.take(tx, len(fresh), events=False)
    rows = [{**columns_of(completion), "seq": seq} for completion, seq in zip(fresh, numbers, strict=True)]
    tx.execute(completions.insert(), rows)
    trials.answered(tx, fresh)
    tallies.add(tx, Tally(completions=len(fresh)) + joining.arrived(tx, fresh, rules))


def get(tx: sa.Connection, completion_id: str) -> Completion | None:
    row = tx.execute(sa.select(completions).where(completions.c.id == completion_id)).mappings().first()
    return completion_of(row) if row else None


def conversation_of(tx: sa.Connection, user: str, ref: ExternalRef) -> Conversation | None:
    """A user's conversation; None where it has no answer yet."""
    c = completions.c
    theirs = (c.external_system == ref.system) & (c.external_conversation == ref.conversation) & (c.user == user)
    # Counted too, or PostgreSQL may take the minimum from the index of all times, past everybody else's answers.
    whole = sa.select(sa.func.min(c.created_at), sa.func.max(c.seq), sa.func.count()).where(theirs)
    began_at, newest, _ = tx.execute(whole).one()
    if newest is None:
        return None
    row = tx.execute(sa.select(c.adapter, c.rollout, c.holdback).where(c.seq == newest)).one()
    return Conversation(began_at, row.adapter, row.rollout, row.holdback)


def asked_after(tx: sa.Connection, one: Completion, text: str, limit: int) -> list[Completion]:
    """The next completions behind one, in the order of the store, that may hold a text in their messages: of the same
    user, or where that is nobody, of the same conversation. The texts of archived ones are elsewhere."""
    c = completions.c
    same = c.principal.is_not_distinct_from(one.principal) & c.user.is_not_distinct_from(one.user)
    if one.user is None:
        if one.external is None:
            return []
        same &= c.external_system == one.external.system
        same &= c.external_conversation == one.external.conversation
    # As the messages' JSON has it; its beginning tells most of the others, which need not be read.
    begins = sa.cast(c.messages, sa.Text).contains(json.dumps(text)[1:-1][:BEGINNING], autoescape=True)
    query = sa.select(completions).where(same, c.seq > one.seq, begins | c.archive.is_not(None))
    return [completion_of(row) for row in tx.execute(query.order_by(c.seq).limit(limit)).mappings()]


def count_of_adapter(tx: sa.Connection, adapter: str) -> int:
    return int(tx.execute(sa.select(sa.func.count()).where(completions.c.adapter == adapter)).scalar_one())


def of_user(tx: sa.Connection, user: str) -> list[Completion]:
    """What a user asked for or judged, oldest first."""
    judged = sa.select(feedback.c.completion_id).where(feedback.c.user == user)
    query = sa.select(completions).where((completions.c.user == user) | completions.c.id.in_(judged))
    ordered = query.order_by(completions.c.seq)
    return [completion_of(row) for row in tx.execute(ordered).mappings()]
