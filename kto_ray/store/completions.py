"""Completions: insert once, read by id, by external reference, and in key ranges for the data room."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from kto_ray.store.schema import completions, feedback
from kto_ray.types import Arm, Completion, ExternalRef, Feedback


def insert(tx: sa.Connection, completion: Completion) -> None:
    """Add a completion and join the feedback that was waiting for it."""
    external = completion.external
    tx.execute(
        completions.insert().values(
            id=completion.id,
            created_at=completion.created_at,
            model=completion.model,
            adapter=completion.adapter,
            arm=completion.arm.value,
            rollout=completion.rollout,
            status=completion.status,
            user=completion.user,
            task=completion.task,
            external_system=external.system if external else None,
            external_conversation=external.conversation if external else None,
            external_message=external.message if external else None,
            messages=[dict(m) for m in completion.messages],
            params=dict(completion.params),
            text=completion.text,
            finish_reason=completion.finish_reason,
            prompt_tokens=completion.prompt_tokens,
            completion_tokens=completion.completion_tokens,
            latency_s=completion.latency_s,
            first_token_s=completion.first_token_s,
        )
    )
    waiting = feedback.c.named_completion == completion.id
    if external:
        waiting = waiting | _same_external(external)
    tx.execute(feedback.update().where(feedback.c.completion_id.is_(None), waiting).values(completion_id=completion.id))


def get(tx: sa.Connection, completion_id: str) -> Completion | None:
    row = tx.execute(sa.select(completions).where(completions.c.id == completion_id)).mappings().first()
    return _completion(row) if row else None


def find_external(tx: sa.Connection, ref: ExternalRef) -> str | None:
    """The id of the newest completion with this external reference."""
    query = (
        sa.select(completions.c.id)
        .where(
            completions.c.external_system == ref.system,
            completions.c.external_conversation == ref.conversation,
            completions.c.external_message == ref.message,
        )
        .order_by(completions.c.created_at.desc())
        .limit(1)
    )
    return tx.execute(query).scalar()


def count(tx: sa.Connection) -> int:
    return int(tx.execute(sa.select(sa.func.count()).select_from(completions)).scalar_one())


def count_of_adapter(tx: sa.Connection, adapter: str) -> int:
    return int(tx.execute(sa.select(sa.func.count()).where(completions.c.adapter == adapter)).scalar_one())


def of_user(tx: sa.Connection, user: str) -> list[Completion]:
    """What a user asked for or judged, oldest first."""
    judged = sa.select(feedback.c.completion_id).where(feedback.c.user == user)
    query = sa.select(completions).where((completions.c.user == user) | completions.c.id.in_(judged))
    return [
        _completion(row) for row in tx.execute(query.order_by(completions.c.created_at, completions.c.id)).mappings()
    ]


def key_ranges(tx: sa.Connection, events: int) -> list[tuple[str, str | None]]:
    """Split the completions that have feedback into ranges [low, high) of about `events` feedback events each.

    One pass over an index, whatever the number of ranges. The events of a completion are never torn apart. The last
    range is open: its high is None. No feedback gives no range.
    """
    number = sa.func.row_number().over(order_by=feedback.c.completion_id) - 1
    numbered = (
        sa.select(feedback.c.completion_id, number.label("number"))
        .where(feedback.c.completion_id.is_not(None))
        .subquery()
    )
    every = sa.select(numbered.c.completion_id).where(numbered.c.number % events == 0).distinct()
    lows = [str(low) for low in tx.execute(every.order_by(numbered.c.completion_id)).scalars()]
    return list(zip(lows, [*lows[1:], None], strict=True)) if lows else []


def with_feedback(
    tx: sa.Connection, low: str, high: str | None, until: float | None = None
) -> list[tuple[Completion, list[Feedback]]]:
    """The completions of a key range, each with its feedback log in order of arrival; events up to `until` only."""
    from kto_ray.store.feedback import as_feedback

    chosen = feedback.c.completion_id >= low
    if high is not None:
        chosen = chosen & (feedback.c.completion_id < high)
    if until is not None:
        chosen = chosen & (feedback.c.created_at <= until)
    # By completion first: by time alone, SQLite may walk the whole log in the order of time's index for every range.
    arrival = (feedback.c.completion_id, feedback.c.created_at, feedback.c.id)
    events: dict[str, list[Feedback]] = {}
    for row in tx.execute(sa.select(feedback).where(chosen).order_by(*arrival)).mappings():
        events.setdefault(row["completion_id"], []).append(as_feedback(row))
    within = completions.c.id >= low
    if high is not None:
        within = within & (completions.c.id < high)
    # With bounds of its own: PostgreSQL would hash the whole log for every range.
    has_feedback = completions.c.id.in_(sa.select(feedback.c.completion_id).where(chosen))
    query = sa.select(completions).where(within, has_feedback).order_by(completions.c.id)
    return [(_completion(row), events[row["id"]]) for row in tx.execute(query).mappings() if row["id"] in events]


def _same_external(ref: ExternalRef) -> sa.ColumnElement[bool]:
    return sa.and_(
        feedback.c.external_system == ref.system,
        feedback.c.external_conversation == ref.conversation,
        feedback.c.external_message == ref.message,
    )


def external_ref(row: Any) -> ExternalRef | None:
    if row["external_system"] is None:
        return None
    return ExternalRef(row["external_system"], row["external_conversation"], row["external_message"])


def _completion(row: Any) -> Completion:
    return Completion(
        id=row["id"],
        created_at=row["created_at"],
        model=row["model"],
        adapter=row["adapter"],
        arm=Arm(row["arm"]),
        messages=tuple(row["messages"]),
        text=row["text"],
        finish_reason=row["finish_reason"],
        prompt_tokens=row["prompt_tokens"],
        completion_tokens=row["completion_tokens"],
        status=row["status"],
        user=row["user"],
        rollout=row["rollout"],
        task=row["task"],
        external=external_ref(row),
        params=row["params"],
        latency_s=row["latency_s"],
        first_token_s=row["first_token_s"],
    )
