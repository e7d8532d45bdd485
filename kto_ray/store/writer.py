"""One writer a process: what waits is committed together (group commit), and acknowledged once it is durable.

While the store is away, completions and events go to the spool, which is drained in order when it is back; until it is
empty, all that comes goes there too, so that the order holds.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any, TypeVar

import sqlalchemy as sa

from kto_ray.config.capture import FeedbackSection
from kto_ray.records.completions import Completion
from kto_ray.records.feedback import Feedback
from kto_ray.store.database import Store
from kto_ray.store.faults import first_line, is_away, is_own_fault
from kto_ray.store.recording import Receipt, Recorded
from kto_ray.store.spool import Entry, Spool, SpoolFailed, orphans
from kto_ray.store.together import Change, Work, commit, runs

log = logging.getLogger(__name__)

T = TypeVar("T")

WAITING = 4096  # jobs; more are refused at once rather than kept waiting
TOGETHER = 500  # jobs of a transaction
RETRY_S = 1.0  # between two looks whether the store is back
ADOPT_S = 30.0  # between two looks for what a process that is no more has left in its spool


class WriterBusy(RuntimeError):
    """More waits already than can be written soon; nothing was recorded. Try again in a moment."""


@dataclass(frozen=True, slots=True)
class _Job:
    work: Work
    future: Future[Any] = field(default_factory=Future)


class Writer:
    """Hands every change to one thread. Its futures are told once what they are of is durable.

    A change that fails by its own fault fails alone. Where the store is away, a change fails with the store's error;
    where the commit itself was not answered, it may have been made.
    """

    def __init__(self, store: Store, spool: Spool | None = None, rules: FeedbackSection = FeedbackSection()) -> None:
        self._store, self._spool, self._rules = store, spool, rules
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._gate = threading.Lock()  # held while a job is put: none comes behind the end
        self._closed = threading.Event()
        self._away: sa.exc.SQLAlchemyError | None = None  # why the store did not take what was last given to it
        self._direct = threading.Lock()  # held while a batch is written, and while the spool's last entries are
        self._behind = threading.Event()  # the spool holds something
        self._thread = threading.Thread(target=self._write_until_closed, name="writer", daemon=True)
        self._thread.start()
        self._drainer = threading.Thread(target=self._drain_until_closed, name="drainer", daemon=True)
        if spool is not None:
            self._behind.set()
            self._drainer.start()

    def keep(self, completion: Completion) -> Future[None]:
        """Store a completion, or spool it."""
        return self._submit(completion)

    def record(self, event: Feedback) -> Future[Receipt]:
        """Append an event, or spool it: then it is told to be pending.

        The future raises KeyReused where its key is known with another body.
        """
        return self._submit(event)

    def change(self, change: Callable[[sa.Connection], T]) -> Future[T]:
        """Anything else that is short: others wait for it."""
        return self._submit(change)

    @property
    def spooled(self) -> int:
        """Entries that wait for the store."""
        return self._spool.depth if self._spool is not None else 0

    @property
    def waiting(self) -> int:
        return self._jobs.qsize()

    def close(self) -> None:
        """Take nothing more, write what waits, and drain the spool if the store is there."""
        with self._gate:
            if self._closed.is_set():
                return
            self._closed.set()
            self._jobs.put(None)
        self._thread.join()
        if self._spool is not None:
            self._behind.set()
            self._drainer.join()
            self._spool.close()

    def _submit(self, work: Work) -> Future[Any]:
        job = _Job(work)
        with self._gate:
            if self._closed.is_set():
                raise WriterBusy("the service is stopping; nothing was recorded, try again")
            if self._jobs.qsize() >= WAITING:
                raise WriterBusy(f"{WAITING} changes wait to be written; nothing was recorded, try again")
            self._jobs.put(job)
        return job.future

    # ---- the writer's thread

    def _write_until_closed(self) -> None:
        while (batch := self._next()) is not None:
            try:
                with self._direct:
                    outcomes = self._outcomes([job.work for job in batch])
            except Exception as error:  # our own bug: whoever waits must not wait for ever
                log.exception("the writer failed")
                outcomes = [error] * len(batch)
            for job, outcome in zip(batch, outcomes, strict=True):
                _tell(job.future, outcome)

    def _next(self) -> list[_Job] | None:
        """What waits, once there is something; None at the end."""
        first = self._jobs.get()
        if first is None:
            return None
        batch = [first]
        while len(batch) < TOGETHER:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is None:
                self._jobs.put(None)
                break
            batch.append(job)
        return batch

    def _outcomes(self, works: Sequence[Work]) -> list[Any]:
        if self._spool is not None and not self._spool.empty:
            return self._aside(self._spool, works)
        try:
            return commit(self._store, works, self._rules)
        except sa.exc.SQLAlchemyError as error:
            log.warning("the store takes nothing: %s", first_line(error))
            if self._spool is None:
                return [error] * len(works)
            self._away = error if is_away(error) else None
            return self._aside(self._spool, works)

    def _aside(self, spool: Spool, works: Sequence[Work]) -> list[Any]:
        """Spool what can be. The rest is told that the store is away, or tried where it is back."""
        entries = [work for work in works if not callable(work)]
        failed: SpoolFailed | None = None
        try:
            if entries:
                spool.append(entries)
        except SpoolFailed as error:
            log.error("%s", error)
            failed = error
        self._behind.set()
        changes = [work for work in works if callable(work)]
        told = iter([self._away] * len(changes) if self._away is not None else self._changed(changes))
        return [next(told) if callable(work) else failed or _spooled(work) for work in works]

    def _changed(self, changes: Sequence[Change]) -> list[Any]:
        try:
            return commit(self._store, changes, self._rules) if changes else []
        except sa.exc.SQLAlchemyError as error:
            return [error] * len(changes)

    # ---- the drainer's thread

    def _drain_until_closed(self) -> None:
        assert self._spool is not None
        while True:
            self._behind.wait(ADOPT_S)
            self._behind.clear()
            while not self._drained(self._spool):
                if self._closed.wait(RETRY_S):
                    break
            if self._closed.is_set() and not self._thread.is_alive():
                return

    def _drained(self, spool: Spool) -> bool:
        """Bring the spool into the store, and what others left behind; False where the store does not take it."""
        try:
            while not spool.empty:
                drain_one(self._store, spool, self._rules)
                self._away = None
                if spool.depth <= TOGETHER:  # the store is there: the last ones while nothing comes behind them
                    with self._direct:
                        while drain_one(self._store, spool, self._rules):
                            pass
            for left in orphans(spool.folder.parent, spool):
                self._adopt(left)
        except sa.exc.SQLAlchemyError as error:
            self._away = error if is_away(error) else None
            log.warning("%d entries wait in the spool: %s", spool.depth, first_line(error))
            return False
        except Exception as error:  # a full disk, or a bug of ours: whoever drains must not end of it
            log.error("the spool cannot be drained: %s: %s", type(error).__name__, first_line(error))
            return False
        return True

    def _adopt(self, left: Spool) -> None:
        """Bring in what a process that is no more has left. What is wrong with one such spool holds up no other."""
        try:
            while drain_one(self._store, left, self._rules):
                pass
        except sa.exc.SQLAlchemyError:
            raise
        except Exception as error:
            words = "the spool %s, which nobody has, cannot be drained: %s: %s"
            log.error(words, left.folder, type(error).__name__, first_line(error))


def drain_one(store: Store, spool: Spool, rules: FeedbackSection) -> bool:
    """Bring the oldest segment of a spool into the store; False where there is none.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: the store is away, or does not take what is not at fault. The segment stays;
            what of it came in will be known.
        OSError: the segment cannot be read or removed.
    """
    segment = spool.oldest()
    if segment is None:
        return False
    for some in runs(segment.entries, TOGETHER):
        for entry, outcome in zip(some, commit(store, some, rules), strict=True):
            if isinstance(outcome, Exception):
                if not is_own_fault(outcome):
                    raise outcome
                spool.refuse(entry, f"{type(outcome).__name__}: {outcome}")
    spool.drop(segment)
    return True


def _spooled(work: Entry) -> Receipt | None:
    why = "the store is away; it is kept, and joined when that is back"
    return Receipt(work.id, None, Recorded.PENDING, None, why) if isinstance(work, Feedback) else None


def _tell(future: Future[Any], outcome: Any) -> None:
    try:
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
    except InvalidStateError:  # cancelled: nobody waits
        pass
