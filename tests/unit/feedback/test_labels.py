from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest

from kto_ray.feedback.labels import examples
from kto_ray.records.completions import Arm
from kto_ray.records.feedback import Feedback, FeedbackKind
from tests.support.rows import completion

COMPLETION = completion(adapter="policy@v3-abc123", text="By the shore.", user="owner")


def event(id: str, at: float, *, user: str | None = "ann", **more: Any) -> Feedback:
    kind = FeedbackKind.EDIT if "text" in more else FeedbackKind.THUMB if "value" in more else FeedbackKind.COMMENT
    return Feedback(id=id, created_at=at, kind=kind, completion_id="c1", user=user, **more)


def facts(examples: Any) -> Any:
    return [(e.user, e.answer, e.desirable, e.source) for e in examples]


@pytest.mark.parametrize("value", [True, False])
def test_a_thumb_labels_the_answer(value: bool) -> None:
    (example,) = examples(COMPLETION, [event("f1", 12.0, value=value)])
    assert facts([example]) == [("ann", "By the shore.", value, "thumb")]
    assert example.messages == COMPLETION.messages
    assert (example.completion_id, example.adapter, example.created_at) == ("c1", "policy@v3-abc123", 12.0)


def test_last_write_per_user_and_kind_counts_in_any_order() -> None:
    events = [
        event("f1", 1.0, value=True),
        event("f2", 2.0, value=False),
        event("f3", 3.0, value=True, user="bob"),
        event("f4", 2.5, comment="nice"),
    ]
    expected = [("ann", "By the shore.", False, "thumb"), ("bob", "By the shore.", True, "thumb")]
    for seed in range(10):
        assert facts(examples(COMPLETION, random.Random(seed).sample(events, len(events)))) == expected


def test_equal_times_are_decided_by_event_id() -> None:
    events = [event("f2", 1.0, value=False), event("f1", 1.0, value=True)]
    assert facts(examples(COMPLETION, events))[0][2] is False
    assert facts(examples(COMPLETION, events[::-1]))[0][2] is False


def test_an_edit_outranks_the_same_users_thumb_only() -> None:
    events = [
        event("f1", 1.0, text="Go west."),
        event("f2", 9.0, value=True),
        event("f3", 2.0, value=True, user="bob"),
    ]
    assert facts(examples(COMPLETION, events)) == [
        ("ann", "Go west.", True, "edit"),
        ("ann", "By the shore.", False, "edit"),
        ("bob", "By the shore.", True, "thumb"),
    ]


@pytest.mark.parametrize("text", ["By the shore.", "  By the shore.\n", "", "  "])
def test_an_edit_that_changes_nothing_leaves_the_thumb(text: str) -> None:
    assert facts(examples(COMPLETION, [event("f1", 2.0, text=text)])) == []
    events = [event("f1", 2.0, text=text), event("f2", 1.0, value=True)]
    assert facts(examples(COMPLETION, events)) == [("ann", "By the shore.", True, "thumb")]


def test_an_edit_taken_back_by_a_later_edit_is_no_edit() -> None:
    events = [event("f1", 1.0, text="Go west."), event("f2", 2.0, text="By the shore.")]
    assert examples(COMPLETION, events) == ()


def test_withdrawn_events_do_not_count() -> None:
    standing = event("f1", 1.0, value=True)
    withdrawn = event("f2", 2.0, value=False, withdrawn_at=3.0)
    assert facts(examples(COMPLETION, [standing, withdrawn])) == [("ann", "By the shore.", True, "thumb")]
    assert examples(COMPLETION, [withdrawn]) == ()


def test_comments_are_no_label() -> None:
    assert examples(COMPLETION, [event("f1", 1.0, comment="hm")]) == ()


@pytest.mark.parametrize("change", [{"task": "title"}, {"status": "aborted"}, {"status": "failed"}, {"text": " \n"}])
def test_completions_that_never_train(change: Any) -> None:
    completion = dataclasses.replace(COMPLETION, **change)
    assert examples(completion, [event("f1", 1.0, value=True), event("f2", 1.0, text="Go west.")]) == ()


def test_anonymous_feedback_gets_a_stable_user_per_completion() -> None:
    (example,) = examples(
        COMPLETION, [event("f1", 1.0, value=True, user=None), event("f2", 2.0, value=False, user=None)]
    )
    assert (example.user, example.desirable) == ("anonymous:c1", False)


def test_imports_keep_their_source() -> None:
    completion = dataclasses.replace(COMPLETION, arm=Arm.IMPORT)
    assert facts(examples(completion, [event("f1", 1.0, value=True)]))[0][3] == "import"


def test_a_cut_off_answer_has_not_ended_but_its_edit_has() -> None:
    cut = dataclasses.replace(COMPLETION, finish_reason="length")
    assert [e.ended for e in examples(cut, [event("f1", 1.0, value=False)])] == [False]
    assert [e.ended for e in examples(cut, [event("f1", 1.0, text="Go west.")])] == [True, False]
    assert [e.ended for e in examples(COMPLETION, [event("f1", 1.0, value=False)])] == [True]


def test_ids_are_stable_and_tell_examples_apart() -> None:
    thumbs = [event("f1", 1.0, value=True), event("f2", 1.0, text="Go west.", user="bob")]
    ids = [e.id for e in examples(COMPLETION, thumbs)]
    assert len(set(ids)) == 3 and all(len(i) == 32 and int(i, 16) >= 0 for i in ids)
    later = [dataclasses.replace(e, id=e.id + "x", created_at=e.created_at + 5) for e in thumbs]
    assert [e.id for e in examples(COMPLETION, later)] == ids
    (down,) = examples(COMPLETION, [event("f1", 1.0, value=False)])
    assert down.id not in ids
