"""How events enter the log: exactly once, each placed on its answer and looked at by quarantine; many at once in a few
statements."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from kto_ray.config.capture import FeedbackSection
from kto_ray.feedback.labels import attributed, of_conversation, silence, theirs
from kto_ray.feedback.labels import labels as labels_of
from kto_ray.feedback.quarantine import DAY_S, Why
from kto_ray.records.feedback import Feedback
from kto_ray.store import joining, labels, sequence, tallies
from kto_ray.store.among import among
from kto_ray.store.joining import Judged
from kto_ray.store.mapping import feedback_columns, feedback_of
from kto_ray.store.quarantine import Looking
from kto_ray.store.schema import feedback
from kto_ray.store.tallies import Tally

f = feedback.c


class Recorded(enum.StrEnum):
    RECORDED = "recorded"
    PENDING = "pending"  # its completion is not known yet
    DUPLICATE = "duplicate"  # the same idempotency key and body again


@dataclass(frozen=True, slots=True)
class Receipt:
    """What came of an event. `label` is what it makes by itself (up, down, edit), None where it will not train: `why`
    says so in words."""

    feedback_id: str
    completion_id: str | None
    status: Recorded
    label: str | None = None
    why: str | None = None


class KeyReused(ValueError):
    """An idempotency key came again with another body."""


class TooManyEvents(ValueError):
    """A completion has had all that one user may say of it."""


class TooLong(ValueError):
    """An edit or a comment is longer than may be; `field` names it."""

    def __init__(self, field: str, length: int, limit: int) -> None:
        super().__init__(f"{field} has {length} characters, above the limit of {limit}; shorten it")
        self.field = field


class Batch:
    """Events that are appended one after the other in one transaction. What they need to know is read at once, and
    their rows are written when something must see them, at the latest by `finish`."""

    def __init__(self, tx: sa.Connection, events: Sequence[Feedback], rules: FeedbackSection) -> None:
        self._tx, self._rules = tx, rules
        self._known = _known(tx, events)
        self._answers = dict(zip((e.id for e in events), joining.meant(tx, events, rules), strict=True))
        named = {answer.id for answers in self._answers.values() for answer in answers}
        labels.lock(tx, named)  # before the numbers are taken: in their order the labels are made
        self._said = _counted(tx, named)
        placed = (attributed(of[0], e) for e in events if (of := self._answers[e.id]))
        self._looking = Looking(tx, rules, tuple(placed))
        self._rows: list[dict[str, Any]] = []
        self._spreads: list[tuple[Feedback, Sequence[Judged]]] = []
        self._affected: set[str] = set()

    def add(self, event: Feedback) -> Receipt | ValueError:
        """What an event is told, or why it is not recorded."""
        known = self._known.of(event)
        if known is not None and (known.id == event.id or self._keeps(known, event)):
            return self._repeat(known, event)
        answers = self._answers[event.id]
        refused = self._too_long(event) or self._too_many(event, answers)
        if refused is not None:
            return refused
        if not answers:
            self._append(event, None)
            tallies.add(self._tx, Tally(stored=1, pending=1))
            return _receipt(event, None, Recorded.PENDING)
        placed = self._place(event, answers[0])
        self._append(placed, answers[0])
        tallies.add(self._tx, Tally(stored=1) + joining.marks(placed))
        if of_conversation(placed):
            self._spreads.append((placed, answers))
        self._affected.update(answer.id for answer in answers)
        return _receipt(placed, answers[0], Recorded.RECORDED)

    def finish(self) -> None:
        """Write what is not written yet, and bring the labels up to date."""
        self._write()
        for placed, answers in self._spreads:
            tallies.add(self._tx, joining.spread(self._tx, placed, answers, self._rules))
        tallies.add(self._tx, labels.refresh(self._tx, self._affected))

    def _place(self, event: Feedback, answer: Judged) -> Feedback:
        event = attributed(answer, event)
        if self._looking.needs_rows(event, self._rows):
            self._write()
        return joining.place(self._looking, event, answer)

    def _append(self, event: Feedback, answer: Judged | None) -> None:
        self._known.add(event)
        self._rows.append(feedback_columns(event, None if answer is None else answer.id))
        if answer is not None:
            self._said[answer.id] += 1

    def _write(self) -> None:
        if self._rows:
            numbers = sequence.take(self._tx, len(self._rows))
            rows = [{**row, "seq": seq} for row, seq in zip(self._rows, numbers, strict=True)]
            self._tx.execute(feedback.insert(), rows)
            self._rows.clear()

    def _keeps(self, known: Feedback, event: Feedback) -> bool:
        """Whether a key is still that event's. One that is withdrawn, or as old as a key lasts, gives it free."""
        lasts = event.created_at - known.created_at < self._rules.idempotency_days * DAY_S
        if known.withdrawn_at is None and lasts:
            return True
        self._write()
        self._tx.execute(feedback.update().where(f.id == known.id).values(idempotency_key=None))
        return False

    def _repeat(self, known: Feedback, event: Feedback) -> Receipt | ValueError:
        if known.body_hash not in (None, event.body_hash):  # None: of before a migration
            return KeyReused(
                f"Idempotency-Key {event.idempotency_key!r} was used with another body; send a new key for a new event"
            )
        [answers] = joining.meant(self._tx, [known], self._rules)
        again = known.id != event.id
        status = Recorded.DUPLICATE if again else Recorded.RECORDED if answers else Recorded.PENDING
        return _receipt(known, answers[0] if answers else None, status)

    def _too_long(self, event: Feedback) -> TooLong | None:
        rules = self._rules
        texts = (("text", event.text, rules.max_text), ("comment", event.comment, rules.max_comment))
        return next((TooLong(n, len(text), most) for n, text, most in texts if text and len(text) > most), None)

    def _too_many(self, event: Feedback, answers: Sequence[Judged]) -> TooManyEvents | None:
        """Strangers share one allowance, so that they never use up that of who received the answer; so do those who
        speak before the answer is there."""
        most = self._rules.max_events
        if answers and self._said[answers[0].id] < most:
            return None
        if not answers and event.completion_id is None and event.external is None:
            return None
        self._write()
        some = sa.select(f.id).where(_beside(event, answers)).limit(most).subquery()
        if int(self._tx.execute(sa.select(sa.func.count()).select_from(some)).scalar_one()) < most:
            return None
        return TooManyEvents(
            f"this answer has had {most} events of its user, as many as may be (feedback.max_events); "
            "the last that stands counts"
        )


def _beside(event: Feedback, answers: Sequence[Judged]) -> sa.ColumnElement[bool]:
    """The events that share an allowance with this one."""
    if not answers and event.completion_id is not None:
        return f.named_completion == event.completion_id
    if not answers:
        ref = event.external
        assert ref is not None
        on = (f.external_system == ref.system) & (f.external_conversation == ref.conversation)
        on &= f.external_message.is_not_distinct_from(ref.message) & f.completion_id.is_(None)
        return on & f.user.is_not_distinct_from(event.user) & f.principal.is_not_distinct_from(event.principal)
    on = (f.completion_id == answers[0].id) & f.parent.is_(None)
    if not (theirs(answers[0], event) or event.reviewer):
        return on & (f.held_why == Why.STRANGER.value)
    user = attributed(answers[0], event).user
    return on & f.user.is_not_distinct_from(user) & f.principal.is_not_distinct_from(event.principal)


def _counted(tx: sa.Connection, ids: set[str]) -> Counter[str]:
    """How many events each of some completions has had, of anybody."""
    if not ids:
        return Counter()
    query = sa.select(f.completion_id, sa.func.count()).where(among(tx, f.completion_id, ids))
    return Counter({str(of): int(number) for of, number in tx.execute(query.group_by(f.completion_id))})


@dataclass(frozen=True, slots=True)
class _Known:
    """Events that are there already, of a batch too."""

    by_id: dict[str, Feedback]
    by_key: dict[tuple[str, str], Feedback]

    def of(self, event: Feedback) -> Feedback | None:
        """The same event, or one of the same sender under the same key."""
        found = self.by_id.get(event.id)
        if found is None and event.idempotency_key is not None:
            found = self.by_key.get((event.key_owner, event.idempotency_key))
        return found

    def add(self, event: Feedback) -> None:
        self.by_id[event.id] = event
        if event.idempotency_key is not None:
            self.by_key[event.key_owner, event.idempotency_key] = event


def _known(tx: sa.Connection, events: Sequence[Feedback]) -> _Known:
    keys = {(e.key_owner, e.idempotency_key) for e in events if e.idempotency_key is not None}
    same: sa.ColumnElement[bool] = among(tx, f.id, (event.id for event in events))
    if keys:  # what has the key of one and the owner of another is sorted out by `_Known.of`
        owners, names = {owner for owner, _ in keys}, {name for _, name in keys}
        same = same | (among(tx, f.idempotency_key, names) & among(tx, f.key_owner, owners))
    known = _Known({}, {})
    for row in tx.execute(sa.select(feedback).where(same)).mappings():
        known.add(feedback_of(row))
    return known


def _receipt(event: Feedback, answer: Judged | None, status: Recorded) -> Receipt:
    if answer is None:
        return Receipt(event.id, event.completion_id, status, None, "its answer is not known yet")
    judged = replace(event, completion_id=answer.id)
    why = silence(answer, judged)
    label = None if why else labels_of(answer, [judged])[0].verdict.value
    return Receipt(event.id, answer.id, status, label, why)
