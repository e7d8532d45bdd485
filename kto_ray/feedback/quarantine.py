"""Which judgements wait for a person before they count, and why: a pure function of what was said before them.

None of it proves ill will: the limits are above what one person does, and what is caught is kept, shown, and released
or dropped by an operator. Names are free, so a crowd of new ones is told from people only by time: newcomers wait until
they come back, and then all that they said counts.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from kto_ray.config.capture import FeedbackSection
from kto_ray.records.feedback import Feedback, FeedbackKind, Held

DAY_S = 86_400.0
EDITS = 500  # the newest, among which a text is looked for


class Why(enum.StrEnum):
    """Why an event is held; of the last two, why it can never count."""

    SAME_TEXT = "same_text"
    BURST = "burst"
    FLOOD = "flood"
    FLIPS = "flips"
    NEW_USER_EDITS = "new_user_edits"
    NEWCOMER = "newcomer"
    STRANGER = "stranger"
    ORPHAN = "orphan"


@dataclass(frozen=True, slots=True)
class Past:
    """What was said before a judgement, as far as it decides."""

    own: Sequence[Feedback]  # the user's judgements, newest first: all of a day, or the newest `flood_events`
    first_at: float | None  # the user's first judgement that stands on an answer of theirs; None: there is none yet
    began_at: float | None  # the first judgement that the store was told by anybody
    same_text: int  # other users (nobody in particular is one) who gave this text among the newest EDITS edits


def judges(event: Feedback) -> bool:
    """Whether quarantine looks at an event: it may become a label, and is no reviewer's. What was spread from a
    judgement of a conversation goes with that."""
    return (event.value is not None or event.kind is FeedbackKind.EDIT) and not event.reviewer and event.parent is None


def ages(event: Feedback) -> bool:
    """Whether a judgement whose answer is known makes its user older: what is withdrawn, dropped or a stranger's cost
    nothing but a name. One that waits does: else nobody would come back."""
    return event.withdrawn_at is None and event.held is not Held.DROPPED


def why_held(event: Feedback, past: Past, rules: FeedbackSection) -> Why | None:
    """Why a judgement is to wait; None: it counts. The gravest reason is told."""
    if event.kind is FeedbackKind.EDIT and past.same_text >= rules.same_text - 1:
        return Why.SAME_TEXT
    if event.user is None:  # nobody in particular: together they are one user, who fills no more than one may
        return None
    today = [one for one in past.own if one.created_at > event.created_at - DAY_S]
    if sum(one.created_at > event.created_at - rules.burst_s for one in today) >= rules.burst_events:
        return Why.BURST
    if len(today) >= rules.flood_events:
        return Why.FLOOD
    if _flips([event, *today]) > rules.flips:
        return Why.FLIPS
    if back(event, past, rules):
        return None
    edits = sum(one.kind is FeedbackKind.EDIT for one in today)
    if event.kind is FeedbackKind.EDIT and edits >= rules.newcomer_edits:
        return Why.NEW_USER_EDITS
    return Why.NEWCOMER if settled(event.created_at, past.began_at, rules) else None


def settled(now: float, began_at: float | None, rules: FeedbackSection) -> bool:
    """Whether a store has listened for so long that it can tell newcomers from people: those wait."""
    return began_at is not None and now - began_at > 2 * rules.newcomer_days * DAY_S


def back(event: Feedback, past: Past, rules: FeedbackSection) -> bool:
    """Whether its user is no newcomer any more."""
    if rules.newcomer_days == 0:
        return True
    return past.first_at is not None and event.created_at - past.first_at >= rules.newcomer_days * DAY_S


def held(events: Iterable[Feedback], rules: FeedbackSection) -> dict[str, Why]:
    """Which of a whole history wait, by id: each looked at when it was said, newcomers let go when they came back, and
    once the store is settled, those held who came before that and have not come back since."""
    said: list[Feedback] = []
    found: dict[str, Why] = {}
    for event in sorted(events, key=lambda one: one.seq or 0):
        if not judges(event):
            continue
        past = _past(said, event, rules)
        why = why_held(event, past, rules)
        if event.user is not None and back(event, past, rules):
            of_user = {one.id for one in said if one.user == event.user}
            found = {name: of for name, of in found.items() if of is not Why.NEWCOMER or name not in of_user}
        if why is not None:
            found[event.id] = why
        said.append(event)
    if said and settled(said[-1].created_at, said[0].created_at, rules):
        returned = {one.user for i, one in enumerate(said) if back(one, _past(said[:i], one, rules), rules)}
        once = (one for one in said if one.user is not None and one.user not in returned)
        found = {one.id: Why.NEWCOMER for one in once} | found
    return found


def _past(said: Sequence[Feedback], event: Feedback, rules: FeedbackSection) -> Past:
    own = [one for one in said if one.user == event.user]
    edits = [one for one in said if one.kind is FeedbackKind.EDIT][-EDITS:]
    return Past(
        own=own[::-1][: rules.flood_events],
        first_at=min((one.created_at for one in own if ages(one)), default=None),
        began_at=said[0].created_at if said else None,
        same_text=len({one.user for one in edits if one.text == event.text and one.user != event.user}),
    )


def _flips(newest_first: Sequence[Feedback]) -> int:
    """How often a thumb was turned into the other."""
    thumbs: dict[str | None, list[bool | None]] = {}
    for one in newest_first:
        if one.kind is FeedbackKind.THUMB:
            thumbs.setdefault(one.completion_id, []).append(one.value)
    return sum(a is not b for values in thumbs.values() for a, b in pairwise(values))
