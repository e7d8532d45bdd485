"""From the feedback log of one completion to labelled examples. Pure: no store, no clock."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from kto_ray.types import Arm, Completion, Example, Feedback, FeedbackKind


def label(completion: Completion, events: Sequence[Feedback]) -> tuple[Example, ...]:
    """What one completion teaches.

    A thumb labels the answer; an edit makes the edited text desirable and the answer undesirable, and outranks the
    same user's thumb. The last standing event per (user, kind) counts. Comments label nothing.

    Args:
        completion: the logged answer.
        events: its feedback log, in any order, withdrawn events included.

    Returns:
        Examples ordered by user, the edited text before the original; empty for a completion that never trains (a
        task, an unfinished or an empty answer).
    """
    assert all(e.completion_id in (None, completion.id) for e in events), "events of another completion"
    if completion.task or completion.status != "complete" or not completion.text.strip():
        return ()
    thumbs: dict[str, Feedback] = {}
    edits: dict[str, Feedback] = {}
    for event in sorted(events, key=lambda e: (e.created_at, e.id)):
        if event.withdrawn_at is not None:
            continue
        user = _user_key(completion, event.user)
        if event.kind is FeedbackKind.THUMB:
            thumbs[user] = event
        elif event.kind is FeedbackKind.EDIT:
            edits[user] = event
    examples: list[Example] = []
    for user in sorted(thumbs.keys() | edits.keys()):
        examples += _of_user(completion, user, thumbs.get(user), edits.get(user))
    return tuple(examples)


def _of_user(completion: Completion, user: str, thumb: Feedback | None, edit: Feedback | None) -> list[Example]:
    text = edit.text if edit is not None else None
    ended = completion.finish_reason != "length"
    if edit is not None and text is not None and text.strip() not in ("", completion.text.strip()):
        at = edit.created_at
        return [
            _example(completion, user, FeedbackKind.EDIT, text, True, at, ended=True),
            _example(completion, user, FeedbackKind.EDIT, completion.text, False, at, ended),
        ]
    if thumb is not None and thumb.value is not None:
        at = thumb.created_at
        return [_example(completion, user, FeedbackKind.THUMB, completion.text, thumb.value, at, ended)]
    return []


def _user_key(completion: Completion, user: str | None) -> str:
    """Anonymous users get a key of their own per completion: the holdout split and the per-user cap need one."""
    return user if user is not None else f"anonymous:{completion.id}"


def _example(
    completion: Completion, user: str, kind: FeedbackKind, answer: str, desirable: bool, created_at: float, ended: bool
) -> Example:
    source = "import" if completion.arm is Arm.IMPORT else kind.value
    # JSON keeps the fields apart, so no two tuples share a byte string.
    identity = json.dumps([completion.id, user, source, desirable, answer]).encode()
    return Example(
        id=hashlib.sha256(identity).hexdigest()[:32],
        completion_id=completion.id,
        user=user,
        messages=completion.messages,
        answer=answer,
        desirable=desirable,
        source=source,
        adapter=completion.adapter,
        created_at=created_at,
        ended=ended,
    )
