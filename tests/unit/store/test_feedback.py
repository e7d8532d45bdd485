"""Recording: whose an event is, once a key of its sender, on the completion that it means; what it comes to is told."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from kto_ray.config.capture import FeedbackSection
from kto_ray.feedback.quarantine import DAY_S
from kto_ray.records.completions import ExternalRef
from kto_ray.records.feedback import Feedback, FeedbackKind, Held
from kto_ray.store import Store, completions, feedback, joining, labels, tallies
from kto_ray.store.recording import KeyReused, Recorded, TooLong, TooManyEvents
from tests.support.rows import completion, thumb

RULES = FeedbackSection()


def verdicts(tx: sa.Connection, name: str = "c1") -> dict[str, str]:
    return {label.user: label.verdict.value for label in labels.of(tx, name)}


def test_a_strangers_word_is_kept_counted_and_no_label(store: Store) -> None:
    with store.write() as tx:
        completions.insert(tx, completion())
        receipt = feedback.record(tx, thumb("f1", user="mallory", value=False))
        assert (receipt.status, receipt.label) == (Recorded.RECORDED, None)
        assert receipt.why == "it is not of the user who received the answer"
        feedback.record(tx, thumb("f2", user=None))
    with store.read() as tx:
        assert verdicts(tx) == {"ann": "up"}
        assert tallies.total(tx).strangers == 1 and feedback.left_out(tx).not_theirs == 1
        assert [(e.user, e.held_why) for e in feedback.events(tx, "c1")] == [("mallory", "stranger"), ("ann", None)]


@pytest.mark.parametrize(
    ("change", "said", "words"),
    [
        ({"status": "aborted"}, {}, "aborted"),
        ({"status": "failed"}, {}, "failed"),
        ({"text": " "}, {}, "empty"),
        ({"task": "title"}, {}, "task"),
        ({"forced": True}, {}, "forced"),
        ({}, {"kind": FeedbackKind.EDIT, "value": None, "text": " Hello. "}, "changes nothing"),
        ({}, {"kind": FeedbackKind.COMMENT, "value": None, "comment": "hm"}, "comment"),
    ],
)
def test_the_receipt_says_what_will_not_train_and_why(store: Store, change: Any, said: Any, words: str) -> None:
    with store.write() as tx:
        completions.insert(tx, completion(**change))
        event = replace(thumb("f1", idempotency_key="k", body_hash="a"), **said)
        receipt = feedback.record(tx, event)
        assert receipt.label is None and words in (receipt.why or "")
        again = feedback.record(tx, replace(event, id="f2"))
        assert (again.status, again.label, again.why) == (Recorded.DUPLICATE, None, receipt.why)
        assert tallies.total(tx).labels == 0


def test_the_receipt_says_what_it_made(store: Store) -> None:
    with store.write() as tx:
        completions.insert(tx, completion())
        edit = thumb("f3", kind=FeedbackKind.EDIT, value=None, text="Better.")
        told = [feedback.record(tx, e) for e in (thumb("f1"), thumb("f2", value=False), edit)]
        assert [(one.label, one.why) for one in told] == [("up", None), ("down", None), ("edit", None)]


def test_a_key_is_of_its_sender(store: Store) -> None:
    mine = thumb("f1", idempotency_key="click-17", body_hash="a", key_owner="/ann")
    with store.write() as tx:
        completions.insert(tx, completion())
        theirs = replace(mine, id="f0", user="mallory", key_owner="/mallory", body_hash="b")
        assert feedback.record(tx, theirs).feedback_id == "f0"
        assert feedback.record(tx, mine).status is Recorded.RECORDED
        with pytest.raises(KeyReused):
            feedback.record(tx, replace(mine, id="f2", body_hash="c"))
        assert verdicts(tx) == {"ann": "up"}


def test_a_withdrawn_event_is_no_duplicate(store: Store) -> None:
    event = thumb("f1", idempotency_key="k", body_hash="a")
    with store.write() as tx:
        completions.insert(tx, completion())
        feedback.record(tx, event)
        feedback.withdraw(tx, "f1", 300.0)
        assert verdicts(tx) == {}
        again = feedback.record(tx, replace(event, id="f2"))
        assert (again.status, again.feedback_id) == (Recorded.RECORDED, "f2")
        assert feedback.record(tx, replace(event, id="f3")).feedback_id == "f2"
        assert verdicts(tx) == {"ann": "up"}


def test_a_key_is_free_after_its_days(store: Store) -> None:
    event = thumb("f1", idempotency_key="k", body_hash="a", created_at=0.0)
    with store.write() as tx:
        completions.insert(tx, completion())
        feedback.record(tx, event)
        late = replace(event, id="f2", value=False, body_hash="b", created_at=6.9 * DAY_S)
        with pytest.raises(KeyReused):
            feedback.record(tx, late)
        assert feedback.record(tx, replace(late, created_at=7.1 * DAY_S)).status is Recorded.RECORDED
        assert verdicts(tx) == {"ann": "down"}


def test_racing_threads_take_a_withdrawn_key_once(store: Store) -> None:
    with store.write() as tx:
        completions.insert(tx, completion())
        feedback.record(tx, thumb("f", idempotency_key="k", body_hash="a"))
        feedback.withdraw(tx, "f", 300.0)
    seen: list[str] = []

    def send(i: int) -> None:
        with store.write() as tx:
            seen.append(feedback.record(tx, thumb(f"f{i}", idempotency_key="k", body_hash="a")).feedback_id)

    threads = [threading.Thread(target=send, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 8 and len(set(seen)) == 1 and seen[0] != "f"
    with store.read() as tx:
        assert tallies.total(tx).stored == 2 and verdicts(tx) == {"ann": "up"}


REF = ExternalRef("ui", "k", "m")


@pytest.mark.parametrize("first", ["thumb", "completion"])
@pytest.mark.parametrize("other", [{"principal": "web", "user": "web/ann"}, {"principal": "app", "user": "app/eve"}])
def test_a_reference_means_nobody_elses_answer(store: Store, first: str, other: dict[str, str]) -> None:
    """Also where theirs comes later, or before the thumb has found its own."""
    said = thumb("f1", of=None, external=REF, principal="app", user="app/ann")
    with store.write() as tx:
        if first == "thumb":
            assert feedback.record(tx, said).status is Recorded.PENDING
        else:
            completions.insert(tx, completion("mine", external=REF, principal="app", user="app/ann"))
        completions.insert(tx, completion("squatter", external=REF, **other))
        assert joining.overlooked(tx).found == ()
        if first == "thumb":
            completions.insert(tx, completion("mine", external=REF, principal="app", user="app/ann"))
        else:
            assert feedback.record(tx, said).completion_id == "mine"
        assert verdicts(tx, "mine") == {"app/ann": "up"} and verdicts(tx, "squatter") == {}


def conversation(tx: sa.Connection, *names: str, **changes: Any) -> None:
    for name in names:
        completions.insert(tx, completion(name, external=ExternalRef("ui", "k", name), **changes))


ON_ALL = thumb("f", of=None, external=ExternalRef("ui", "k"))


@pytest.mark.parametrize(("rule", "labelled"), [("none", []), ("last", ["c3"]), ("all", ["c1", "c2", "c3"])])
def test_what_is_said_of_a_conversation_is_spread_to_its_turns(store: Store, rule: Any, labelled: list[str]) -> None:
    with store.write() as tx:
        conversation(tx, "c1", "c2", "c3")
        conversation(tx, "title", task="title")
        conversation(tx, "of-bob", user="bob")
        receipt = feedback.record(tx, ON_ALL, FeedbackSection(spread=rule))
        assert (receipt.status, receipt.completion_id, receipt.label) == (Recorded.RECORDED, "c3", None)
        assert [name for name in ("c1", "c2", "c3", "title", "of-bob") if verdicts(tx, name)] == labelled
        assert tallies.total(tx).stored == 1 + len(labelled)
        conversation(tx, "c4")  # a turn that came after it
        assert verdicts(tx, "c4") == {}
        feedback.withdraw(tx, "f", 300.0)
        assert tallies.total(tx).labels == 0 and tallies.total(tx).withdrawn == 1 + len(labelled)


def test_what_is_said_of_a_conversation_that_is_not_known_waits_for_its_first_turn(store: Store) -> None:
    with store.write() as tx:
        assert feedback.record(tx, ON_ALL).status is Recorded.PENDING
        conversation(tx, "of-bob", user="bob")
        assert tallies.total(tx).pending == 1
        conversation(tx, "c1")
        assert tallies.total(tx).pending == 0 and verdicts(tx) == {"ann": "up"}


def test_what_waits_too_long_is_an_orphan(store: Store) -> None:
    with store.write() as tx:
        feedback.record(tx, thumb("old", of="c1", created_at=100.0))
        feedback.record(tx, thumb("new", of="c1", created_at=200.0))
        pending = joining.overlooked(tx, before=150.0)
        assert (pending.found, pending.stale) == ((), ("old",))
        joining.expire(tx, pending.stale)
        assert joining.overlooked(tx, before=150.0) == joining.Overlooked((), (), "")
        completions.insert(tx, completion())
        assert [event.id for event in feedback.events(tx, "c1")] == ["new"]
        assert (tallies.total(tx).pending, tallies.total(tx).orphans) == (0, 1)


def test_pending_feedback_without_a_name_is_its_completions_users(store: Store) -> None:
    with store.write() as tx:
        feedback.record(tx, thumb("f1", user=None))
        completions.insert(tx, completion())
        assert verdicts(tx) == {"ann": "up"} and feedback.events(tx, "c1")[0].user == "ann"


def test_all_without_a_name_are_one_user(store: Store) -> None:
    with store.write() as tx:
        for i in range(3):
            completions.insert(tx, completion(f"c{i}", user=None))
            feedback.record(tx, thumb(f"f{i}", f"c{i}", user=None))
        assert [verdicts(tx, f"c{i}") for i in range(3)] == [{"anonymous": "up"}] * 3


@pytest.mark.parametrize("known", [True, False])
def test_an_answer_takes_a_bounded_number_of_events(store: Store, known: bool) -> None:
    """Strangers cannot use up the allowance of who received it."""

    def say(name: str, **changes: Any) -> None:
        feedback.record(tx, thumb(name, value=False, **changes))

    with store.write() as tx:
        if known:
            completions.insert(tx, completion())
        for i in range(RULES.max_events):
            say(f"s{i}", user=f"u{i}")
        with pytest.raises(TooManyEvents, match=r"20 events"):
            say("s", user="another")
        if not known:
            return
        for i in range(RULES.max_events):
            say(f"f{i}", user=None if i % 2 else "ann")
        for name in (None, "ann"):
            with pytest.raises(TooManyEvents):
                say("f", user=name)
        say("r", user="judge", reviewer=True)
        assert verdicts(tx) == {"ann": "down", "judge": "down"}


@pytest.mark.parametrize(("field", "limit"), [("text", RULES.max_text), ("comment", RULES.max_comment)])
def test_texts_have_a_length(store: Store, field: str, limit: int) -> None:
    def long(length: int) -> Any:
        return {field: "x" * length}

    with store.write() as tx:
        completions.insert(tx, completion())
        event = thumb("f1", kind=FeedbackKind.EDIT, value=None)
        feedback.record(tx, replace(event, **long(limit)))
        with pytest.raises(TooLong, match=f"{field} has {limit + 1} characters"):
            feedback.record(tx, replace(event, id="f2", **long(limit + 1)))


def test_what_an_operator_imported_is_not_looked_at(store: Store) -> None:
    from kto_ray.records.completions import Arm

    with store.write() as tx:
        for i in range(50):
            completions.insert(tx, completion(f"c{i}", arm=Arm.IMPORT))
            feedback.record(tx, thumb(f"f{i}", f"c{i}"))
        assert tallies.total(tx).up == 50 and tallies.total(tx).held == 0


def test_a_child_stands_where_its_judgement_stands(store: Store) -> None:
    rules = FeedbackSection(burst_events=1)
    with store.write() as tx:
        conversation(tx, "c0", "c1")
        feedback.record(tx, thumb("f0", "c0"), rules)
        feedback.record(tx, ON_ALL, rules)
        spread: list[Feedback] = feedback.events(tx, "c1")
        assert [(event.id, event.held) for event in spread] == [("f", Held.HELD), ("f-0", Held.HELD)]
        assert verdicts(tx) == {}
