"""Many changes in one transaction (group commit): one wait for the disk, and whoever is at fault fails alone."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import sqlalchemy as sa

from kto_ray.config.capture import FeedbackSection
from kto_ray.records.completions import Completion
from kto_ray.records.feedback import Feedback
from kto_ray.store import completions, feedback, tallies
from kto_ray.store.database import Store
from kto_ray.store.faults import is_away, is_own_fault, lost_a_race
from kto_ray.store.spool import Entry

Change = Callable[[sa.Connection], Any]
Work = Entry | Change

RACES = 4  # times that a transaction is tried when others are in its way


def commit(store: Store, works: Sequence[Work], rules: FeedbackSection) -> list[Any]:
    """Make all changes durable at once; returns what each is told: its result, or the error that is its own fault.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: the store is away, or does not take an entry that is not at fault. Whether it
            committed is not known.
    """
    try:
        return _transact(store, lambda tx: _all(tx, works, rules))
    except Exception as error:
        if isinstance(error, sa.exc.SQLAlchemyError) and is_away(error):
            raise
        if len(works) == 1:
            return [_its_own(works[0], error)]
    return _transact(store, lambda tx: [_alone(tx, work, rules) for work in works])


def runs(entries: Sequence[Entry], most: int) -> Iterator[Sequence[Entry]]:
    """Entries that came one after the other, as they may be committed together. In a transaction completions go first,
    so one is cut where a completion follows an event on its conversation: that event means the turn that was the last
    when it was given."""
    begin, spoken = 0, set[tuple[str, str]]()
    for at, entry in enumerate(entries):
        talk = (entry.external.system, entry.external.conversation) if entry.external is not None else None
        if at - begin == most or (isinstance(entry, Completion) and talk in spoken):
            yield entries[begin:at]
            begin, spoken = at, set()
        if isinstance(entry, Feedback) and talk is not None:
            spoken.add(talk)
    if begin < len(entries):
        yield entries[begin:]


def _transact(store: Store, act: Callable[[sa.Connection], list[Any]]) -> list[Any]:
    """Again where another transaction was in the way: then nothing has come of it."""
    for tries_left in reversed(range(RACES)):
        try:
            with store.write() as tx:
                return act(tx)
        except sa.exc.DBAPIError as error:
            if not lost_a_race(error) or not tries_left:
                raise
            time.sleep(random.uniform(0, 0.05))
    raise AssertionError("unreachable")


def _all(tx: sa.Connection, works: Sequence[Work], rules: FeedbackSection) -> list[Any]:
    """Completions first, then events, then the rest: what waits together follows from nothing that waits with it."""
    answers = [work for work in works if isinstance(work, Completion)]
    events = [work for work in works if isinstance(work, Feedback)]
    if answers:
        completions.insert_all(tx, answers, rules)
    receipts = iter(feedback.record_all(tx, events, rules) if events else ())
    told: list[Any] = []
    for work in works:
        if isinstance(work, Completion):
            told.append(None)
        else:
            told.append(next(receipts) if isinstance(work, Feedback) else work(tx))
    return told


def _alone(tx: sa.Connection, work: Work, rules: FeedbackSection) -> Any:
    """What it gives, or its own fault, of which nothing stays."""
    try:
        with tallies.savepoint(tx):
            return _all(tx, (work,), rules)[0]
    except Exception as error:
        return _its_own(work, error)


def _its_own(work: Work, error: Exception) -> Exception:
    """An error that is for whoever asked: whatever a change raises, but what is the store's. An entry was promised to
    be kept, so that it waits unless it is at fault itself."""
    if isinstance(error, sa.exc.SQLAlchemyError) and (is_away(error) or not (callable(work) or is_own_fault(error))):
        raise error
    return error
