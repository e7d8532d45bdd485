"""What a label is: from the feedback log of one completion to verdicts, and from these to examples. Pure: no store, no
clock. Counting, training and the A/B test all ask here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from kto_ray.feedback.seen import seen
from kto_ray.records.completions import Arm, Completion, Json
from kto_ray.records.examples import OF_PROMPT, Example
from kto_ray.records.feedback import Feedback, FeedbackKind, Held
from kto_ray.records.labels import ANONYMOUS, Label, Verdict


class Answer(Protocol):
    """What of a completion decides whether it can be judged, and by whom."""

    @property
    def id(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def tool_calls(self) -> Sequence[Json] | None: ...
    @property
    def status(self) -> str: ...
    @property
    def task(self) -> str | None: ...
    @property
    def forced(self) -> bool: ...
    @property
    def user(self) -> str | None: ...
    @property
    def principal(self) -> str | None: ...


def labels(answer: Answer, events: Sequence[Feedback]) -> tuple[Label, ...]:
    """The verdict of who received an answer, and of each reviewer, ordered by user.

    A thumb is a verdict; an edit that changes the answer is one and outranks the same judge's thumb; a signal that
    carries a value is one where its judge has said nothing. The last standing event per (judge, kind) counts, by the
    order of the store; while one behind it is held, neither does: nobody knows yet what its judge thinks.

    Args:
        answer: the logged completion.
        events: its feedback log, in any order, withdrawn events included.
    """
    assert all(e.completion_id in (None, answer.id) for e in events), "events of another completion"
    if mute(answer):
        return ()
    said: dict[str, dict[FeedbackKind, Feedback]] = {}
    for event in sorted(events, key=lambda e: (e.seq or 0, e.created_at, e.id)):
        if _unsaid(answer, event) or event.held is Held.DROPPED:
            continue
        last = said.setdefault(_judge(answer, event), {})
        if event.held is not Held.HELD or event.kind in last:
            last[event.kind] = event
    found = (_verdict(answer, judge, last) for judge, last in sorted(said.items()))
    return tuple(label for label in found if label is not None)


def mute(answer: Answer) -> str | None:
    """Why nothing that is said of an answer is a label; None where it is."""
    if answer.task:
        return "the answer was for a task, not for a person"
    if answer.forced:
        return "the client forced the answer's words, so they are not the model's"
    if answer.status != "complete":
        return f"the answer is {answer.status}: it did not come to its end"
    if not (seen(answer.text) or answer.tool_calls):
        return "the answer is empty"
    return None


def unheard(answer: Answer, event: Feedback) -> str | None:
    """Why an event makes no label of an answer that can be judged; None where it may."""
    why = _unsaid(answer, event)
    if why is None and event.held in (Held.HELD, Held.DROPPED):
        return f"it is {event.held} ({event.held_why})"
    return why


def _unsaid(answer: Answer, event: Feedback) -> str | None:
    """The same, whatever quarantine made of it."""
    if event.kind is FeedbackKind.COMMENT:
        return "a comment judges nothing"
    if event.kind is FeedbackKind.SIGNAL and event.value is None:
        return f"the signal {event.signal} is no judgement here (feedback.signals)"
    if of_conversation(event):
        return "it speaks of the conversation: its turns have events of their own"
    if event.withdrawn_at is not None:
        return "it is withdrawn"
    if not (theirs(answer, event) or event.reviewer):
        return "it is not of the user who received the answer"
    return None


def silence(answer: Answer, event: Feedback) -> str | None:
    """Why an event makes no label by itself, in words for who sent it; None where it makes one."""
    why = mute(answer) or unheard(answer, event)
    if why is None and not labels(answer, [event]):
        return "the edit changes nothing"
    return why


def theirs(answer: Answer, event: Feedback) -> bool:
    """Whether an event is of who received the answer. One that names no user belongs to the completion's, within one
    principal; a reviewer who names none speaks as a reviewer."""
    if event.principal != answer.principal:
        return False
    return event.user == answer.user if event.user is not None else not event.reviewer


def attributed(answer: Answer, event: Feedback) -> Feedback:
    """The event as its user's, where it is of who received the answer: named, and no reviewer's, though their key may
    judge any."""
    return replace(event, user=answer.user, reviewer=False) if theirs(answer, event) else event


def of_conversation(event: Feedback) -> bool:
    """Whether an event speaks of a whole conversation, and not of one answer."""
    return event.external is not None and event.external.message is None


def examples(completion: Completion, events: Sequence[Feedback]) -> tuple[Example, ...]:
    """What one completion teaches: an example a thumb, two an edit (the edited text before the original)."""
    ended = completion.finish_reason != "length" and completion.stop_reason is None
    found: list[Example] = []
    for label in labels(completion, events):
        if label.text is not None:
            found.append(_example(completion, label, label.text, True, ended=True))
        found.append(_example(completion, label, completion.text, label.verdict is Verdict.UP, ended))
    return tuple(found)


def _judge(answer: Answer, event: Feedback) -> str:
    """All who received an answer without a name are one user. A reviewer's name is never one of a user: it is another
    principal's, or the bare name of one that vouches for its users."""
    if theirs(answer, event):
        return answer.user if answer.user is not None else ANONYMOUS
    return event.user or event.principal or "reviewer"


def _verdict(answer: Answer, judge: str, last: dict[FeedbackKind, Feedback]) -> Label | None:
    edit = last.get(FeedbackKind.EDIT)
    if edit is not None and edit.held is Held.HELD:
        return None
    text = edit.text if edit is not None else None
    if edit is not None and text is not None and seen(text) not in ("", seen(answer.text)):
        return _label(answer, judge, Verdict.EDIT, edit, text)
    act = last.get(FeedbackKind.THUMB) or last.get(FeedbackKind.SIGNAL)
    if act is not None and act.value is not None and act.held is not Held.HELD:
        return _label(answer, judge, Verdict.UP if act.value else Verdict.DOWN, act, None)
    return None


def _label(answer: Answer, judge: str, verdict: Verdict, event: Feedback, text: str | None) -> Label:
    reviewed = not theirs(answer, event)
    return Label(answer.id, judge, verdict, event.created_at, text, event.seq or 0, reviewed)


def _example(completion: Completion, label: Label, answer: str, desirable: bool, ended: bool) -> Example:
    kind = FeedbackKind.EDIT if label.verdict is Verdict.EDIT else FeedbackKind.THUMB
    source = "import" if completion.arm is Arm.IMPORT else "reviewer" if label.reviewer else kind.value
    own = answer is completion.text
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
        answer_ids=completion.answer_ids if own else None,
        base=completion.base,
        reasoned=bool(completion.reasoning) and own,
        shaped=not OF_PROMPT.isdisjoint(completion.params),
        tool_calls=completion.tool_calls if own else (),
    )
