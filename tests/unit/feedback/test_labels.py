from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest

from kto_ray.feedback.labels import examples, labels, silence
from kto_ray.records.completions import Arm, ExternalRef
from kto_ray.records.feedback import Feedback, FeedbackKind, Held, Signal
from kto_ray.records.labels import Verdict
from tests.support.rows import completion

COMPLETION = completion(adapter="policy@v3-abc123", text="By the shore.", user="ann")


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


def test_last_write_per_judge_and_kind_counts_in_any_order() -> None:
    events = [
        event("f1", 9.0, value=True, seq=1),
        event("f2", 1.0, value=False, seq=2),  # by a clock that went back: the store's order tells
        event("f3", 3.0, value=True, user="judge", reviewer=True, seq=3),
        event("f4", 2.5, comment="nice", seq=4),
    ]
    expected = [("ann", "By the shore.", False, "thumb"), ("judge", "By the shore.", True, "reviewer")]
    for seed in range(10):
        assert facts(examples(COMPLETION, random.Random(seed).sample(events, len(events)))) == expected


def test_equal_times_are_decided_by_event_id() -> None:
    events = [event("f2", 1.0, value=False), event("f1", 1.0, value=True)]
    assert facts(examples(COMPLETION, events))[0][2] is False
    assert facts(examples(COMPLETION, events[::-1]))[0][2] is False


def test_an_edit_outranks_the_same_judges_thumb_only() -> None:
    events = [
        event("f1", 1.0, text="Go west."),
        event("f2", 9.0, value=True),
        event("f3", 2.0, value=True, user="judge", reviewer=True),
    ]
    assert facts(examples(COMPLETION, events)) == [
        ("ann", "Go west.", True, "edit"),
        ("ann", "By the shore.", False, "edit"),
        ("judge", "By the shore.", True, "reviewer"),
    ]


@pytest.mark.parametrize(
    ("owner", "said", "judge"),
    [
        (("app", "app/ann"), {"principal": "app", "user": "app/ann"}, "app/ann"),
        (("app", "app/ann"), {"principal": "app", "user": None}, "app/ann"),
        (("app", "app/ann"), {"principal": "app", "user": "app/bob"}, None),
        (("app", "app/ann"), {"principal": "web", "user": None}, None),
        (("app", "app/ann"), {"principal": None, "user": "app/ann"}, None),
        (("app", "app/ann"), {"principal": "app", "user": "app/ann", "reviewer": True}, "app/ann"),
        (("app", "app/ann"), {"principal": "app", "user": None, "reviewer": True}, "app"),
        (("app", "app/ann"), {"principal": "judge", "user": "judge", "reviewer": True}, "judge"),
        (("app", None), {"principal": "app", "user": None}, "anonymous"),
        (("app", None), {"principal": "app", "user": "app/bob"}, None),
        ((None, None), {"user": None}, "anonymous"),
        ((None, None), {"user": "mallory"}, None),
        ((None, "ann"), {"user": "mallory"}, None),
    ],
)
def test_only_who_received_the_answer_judges_it_or_a_reviewer(owner: Any, said: Any, judge: str | None) -> None:
    answer = dataclasses.replace(COMPLETION, principal=owner[0], user=owner[1])
    found = labels(answer, [event("f1", 1.0, value=True, **said)])
    assert [label.user for label in found] == ([judge] if judge else [])
    assert [label.reviewer for label in found] == ([judge in ("app", "judge")] if judge else [])
    assert (silence(answer, event("f1", 1.0, value=True, **said)) is None) == (judge is not None)


@pytest.mark.parametrize(
    "text", ["By the shore.", "  By the shore.\n", "", "  ", "\u200bBy the shore.\ufeff", "\u200b"]
)
def test_an_edit_that_changes_nothing_leaves_the_thumb(text: str) -> None:
    assert facts(examples(COMPLETION, [event("f1", 2.0, text=text)])) == []
    events = [event("f1", 2.0, text=text), event("f2", 1.0, value=True)]
    assert facts(examples(COMPLETION, events)) == [("ann", "By the shore.", True, "thumb")]


def test_an_edit_that_only_ends_lines_or_writes_accents_otherwise_changes_nothing() -> None:
    answer = dataclasses.replace(COMPLETION, text="Café.\nOpen.")
    for text in ("Cafe\u0301.\nOpen.", "Café.\r\nOpen.\r\n"):
        assert labels(answer, [event("f1", 1.0, text=text)]) == ()
    assert labels(answer, [event("f1", 1.0, text="Café.\n\nOpen.")]) != ()


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


@pytest.mark.parametrize(
    "change",
    [
        {"task": "title"},
        {"status": "aborted"},
        {"status": "failed"},
        {"text": " \n"},
        {"text": "\u200b\n"},
        {"forced": True},
    ],
)
def test_completions_that_never_train(change: Any) -> None:
    completion = dataclasses.replace(COMPLETION, **change)
    assert examples(completion, [event("f1", 1.0, value=True), event("f2", 1.0, text="Go west.")]) == ()
    assert silence(completion, event("f1", 1.0, value=True)) is not None


def test_an_answer_of_tool_calls_alone_is_judged_as_any() -> None:
    call = {"id": "call-0", "type": "function", "function": {"name": "tide", "arguments": '{"port": "Hull"}'}}
    called = dataclasses.replace(COMPLETION, text="", tool_calls=(call,), answer_ids=b"ids.")
    assert silence(called, event("f1", 1.0, value=True)) is None
    (down,) = examples(called, [event("f1", 1.0, value=False)])
    assert (down.desirable, down.answer_ids, down.tool_calls) == (False, b"ids.", (call,))
    better, worse = examples(called, [event("f1", 1.0, text="High at four.")])
    assert (better.answer, better.answer_ids, better.tool_calls) == ("High at four.", None, ())
    assert (worse.desirable, worse.tool_calls) == (False, (call,))


@pytest.mark.parametrize(
    ("held", "counts"), [(None, True), (Held.HELD, False), (Held.DROPPED, False), (Held.RELEASED, True)]
)
def test_what_quarantine_holds_does_not_count(held: Held | None, counts: bool) -> None:
    assert bool(examples(COMPLETION, [event("f1", 1.0, value=True, held=held)])) is counts


@pytest.mark.parametrize(
    ("said", "verdicts"),
    [
        ("up -down", []),  # nobody knows yet what she thinks
        ("up -down up", ["up"]),
        ("up xdown", ["up"]),
        ("-down", []),
        ("-down up", ["up"]),
        ("up down -up", []),
        ("up -edit", ["up"]),  # of another kind
        ("up edit -edit", []),
        ("up edit xedit", ["edit"]),
        ("edit -down", ["edit"]),
        ("up edit -down", ["edit"]),
    ],
)
def test_a_held_act_suspends_an_older_one_of_its_kind_and_a_dropped_one_does_not(
    said: str, verdicts: list[str]
) -> None:
    standing = {"-": Held.HELD, "x": Held.DROPPED}
    events = []
    for number, act in enumerate(said.split()):
        what = {"text": f"Go {number}."} if act.endswith("edit") else {"value": act.endswith("up")}
        events.append(event(f"f{number}", float(number), seq=number, held=standing.get(act[0]), **what))
    judge = event("r", 0.0, user="judge", reviewer=True, value=False)
    found = labels(COMPLETION, [*events, judge])
    assert [label.verdict.value for label in found if label.user == "ann"] == verdicts
    assert [label.verdict.value for label in found if label.user == "judge"] == ["down"]


def test_a_signal_is_a_label_only_where_it_carries_a_value_and_nothing_was_said() -> None:
    signal = Feedback("f1", 5.0, FeedbackKind.SIGNAL, "c1", "ann", signal=Signal.REGENERATED)
    assert labels(COMPLETION, [signal]) == ()
    down = dataclasses.replace(signal, value=False)
    assert [label.verdict for label in labels(COMPLETION, [down])] == [Verdict.DOWN]
    assert [label.verdict for label in labels(COMPLETION, [down, event("f2", 1.0, value=True)])] == [Verdict.UP]


def test_what_is_said_of_a_conversation_is_no_label_of_its_last_answer() -> None:
    assert labels(COMPLETION, [event("f1", 1.0, value=True, external=ExternalRef("ui", "k"))]) == ()


def test_imports_keep_their_source() -> None:
    completion = dataclasses.replace(COMPLETION, arm=Arm.IMPORT)
    assert facts(examples(completion, [event("f1", 1.0, value=True)]))[0][3] == "import"


def test_a_cut_off_answer_has_not_ended_but_its_edit_has() -> None:
    cut = dataclasses.replace(COMPLETION, finish_reason="length")
    assert [e.ended for e in examples(cut, [event("f1", 1.0, value=False)])] == [False]
    assert [e.ended for e in examples(cut, [event("f1", 1.0, text="Go west.")])] == [True, False]
    assert [e.ended for e in examples(COMPLETION, [event("f1", 1.0, value=False)])] == [True]


def test_ids_are_stable_and_tell_examples_apart() -> None:
    judged = event("f1", 1.0, value=True, user="judge", reviewer=True)
    thumbs = [judged, event("f2", 1.0, text="Go west.")]
    ids = [e.id for e in examples(COMPLETION, thumbs)]
    assert len(set(ids)) == 3 and all(len(i) == 32 and int(i, 16) >= 0 for i in ids)
    later = [dataclasses.replace(e, id=e.id + "x", created_at=e.created_at + 5) for e in thumbs]
    assert [e.id for e in examples(COMPLETION, later)] == ids
    (down,) = examples(COMPLETION, [dataclasses.replace(judged, value=False)])
    assert down.id not in ids
