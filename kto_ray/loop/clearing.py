"""What the workers of trainings hold that were cut short is taken back beside the tick, for the storage, which knows
where they were placed, may be slow or away; again, until it is done."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import ray

from kto_ray.config import Config
from kto_ray.loop import work
from kto_ray.records.rounds import Ended, Round

log = logging.getLogger(__name__)

REST_S = 60.0  # between two tries
LIMIT_S = 6 * 3600.0  # of all of them


class Clearing:
    """Only of runs that train no more: a try may end long after it began."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="clearing")
        self._left: dict[str, float] = {}  # runs, and since when they wait
        self._trying: tuple[str, Future[None]] | None = None
        self._rests_until = float("-inf")
        self._told = ""

    def add(self, runs: Iterable[str]) -> None:
        for run in runs:
            self._left.setdefault(run, time.monotonic())
        self.look()

    def look(self) -> None:
        """See what came of a try, and begin the next one. Waits for nothing."""
        if self._trying is not None and self._trying[1].done():
            (run, tried), self._trying = self._trying, None
            self._ended(run, tried)
        self._give_up()
        if self._trying is None and self._left and time.monotonic() >= self._rests_until:
            run = next(iter(self._left))
            self._trying = run, self._thread.submit(work.clear, self._config, run)

    def _ended(self, run: str, tried: Future[None]) -> None:
        since = self._left.pop(run, None)
        try:
            tried.result()
        except (OSError, ray.exceptions.RayError) as error:
            if since is None:  # it was given up
                return
            self._left[run] = since  # the last in the row
            self._rests_until = time.monotonic() + REST_S
            words = f"{type(error).__name__}: {error}"
            if words != self._told:
                log.warning(
                    "what the workers of %s hold is not taken back yet, and will be tried again: %s", run, words
                )
            self._told = words

    def _give_up(self) -> None:
        late = time.monotonic() - LIMIT_S
        for run in [run for run, since in self._left.items() if since <= late]:
            del self._left[run]
            log.error(
                "what the workers of %s hold could not be taken back within %g hours: their CPUs and GPUs may stay "
                "taken until Ray is restarted; the last try said: %s",
                run,
                LIMIT_S / 3600,
                self._told or "nothing, it still waits for the storage",
            )


def cut_short(current: Round) -> set[str]:
    """Training runs that came to no adapter, whose workers may still hold what they were given."""
    tried = {current.run_of(one) for one in current.candidates if one.tried is not None and one.tried.adapter is None}
    state = current.state
    training = isinstance(state, Ended) and state.snapshot is not None and state.adapter is None
    return tried | {current.run} if training else tried
