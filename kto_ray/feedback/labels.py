"""What a label is: from the feedback log of one completion to verdicts, and from these to examples. Pure: no store, no
clock. Counting, training and the A/B test all ask here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Protocol

from kto_ray.records.completions import Arm, Completion
from kto_ray.records.examples import Example
from kto_ray.records.feedback import Feedback, FeedbackKind, Held
from kto_ray.records.labels import Label, Verdict


class Answer(Protocol):
    """What of a completion decides whether it can be judged."""

    @property
    def id(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def task(self) -> str | None: ...
    @property
    def forced(self) -> bool: ...


def labels(answer: Answer, events: Sequence[Feedback]) -> tuple[Label, ...]:
    """The verdict of each user on one completion, ordered by user.

    A thumb is a verdict; an edit that changes the answer is one and outranks the same user's thumb. The last standing
    event per (user, kind) counts, by the order of the store. Comments and signals say nothing, neither does what
    quarantine holds, and a completion that never trains (a task, an unfinished, an empty or a forced answer) has no
    verdicts.

    Args:
        answer: the logged completion.
        events: its feedback log, in any order, withdrawn events included.
    """
    assert all(e.completion_id in (None, answer.id) for e in events), "events of another completion"
    if answer.task or answer.forced or answer.status != "complete" or not answer.text.strip():
        return ()
    thumbs: dict[str, Feedback] = {}
    edits: dict[str, Feedback] = {}
    for event in sorted(events, key=lambda e: (e.seq or 0, e.created_at, e.id)):
        if event.withdrawn_at is not None or event.held in (Held.HELD, Held.DROPPED):
            continue
        user = _user_key(answer.id, event.user)
        if event.kind is FeedbackKind.THUMB:
            thumbs[user] = event
        elif event.kind is FeedbackKind.EDIT:
            edits[user] = event
    found = (_verdict(answer, user, thumbs.get(user), edits.get(user)) for user in sorted(thumbs.keys() | edits.keys()))
    return tuple(label for label in found if label is not None)


def examples(completion: Completion, events: Sequence[Feedback]) -> tuple[Example, ...]:
    """What one completion teaches: an example a thumb, two an edit (the edited text before the original)."""
    ended = completion.finish_reason != "length" and completion.stop_reason is None
    found: list[Example] = []
    for label in labels(completion, events):
        if label.text is not None:
            found.append(_example(completion, label, label.text, True, ended=True))
        found.append(_example(completion, label, completion.text, label.verdict is Verdict.UP, ended))
    return tuple(found)


def _verdict(answer: Answer, user: str, thumb: Feedback | None, edit: Feedback | None) -> Label | None:
    text = edit.text if edit is not None else None
    if edit is not None and text is not None and text.strip() not in ("", answer.text.strip()):
        return Label(answer.id, user, Verdict.EDIT, edit.created_at, text, edit.seq or 0)
    if thumb is not None and thumb.value is not None:
        return Label(answer.id, user, Verdict.UP if thumb.value else Verdict.DOWN, thumb.created_at, seq=thumb.seq or 0)
    return None


def _user_key(completion_id: str, user: str | None) -> str:
    """Anonymous users get a key of their own per completion: the holdout split and the per-user cap need one."""
    return user if user is not None else f"anonymous:{completion_id}"


def _example(completion: Completion, label: Label, answer: str, desirable: bool, ended: bool) -> Example:
    kind = FeedbackKind.EDIT if label.verdict is Verdict.EDIT else FeedbackKind.THUMB
    source = "import" if completion.arm is Arm.IMPORT else kind.value
    # JSON keeps the fields apart, so no two tuples share a byte string.
    identity = json.dumps([completion.id, label.user, source, desirable, answer]).encode()
    return Example(
        id=hashlib.sha256(identity).hexdigest()[:32],
        completion_id=completion.id,
        user=label.user,
        messages=completion.messages,
        answer=answer,
        desirable=desirable,
        source=source,
        adapter=completion.adapter,
        created_at=label.at,
        ended=ended,
        prompt_ids=completion.prompt_ids,
        answer_ids=completion.answer_ids if answer is completion.text else None,
        base=completion.base,
        reasoned=bool(completion.reasoning) and answer is completion.text,
    )
