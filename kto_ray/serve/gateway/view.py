"""What routing needs, read from the store every half second: for this, a request waits for no query."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from kto_ray.config import Config
from kto_ray.records.adapters import CHAMPION
from kto_ray.records.completions import Arm
from kto_ray.records.conversations import Conversation
from kto_ray.records.keys import Key
from kto_ray.records.replicas import held_by_all
from kto_ray.records.rollouts import RolloutKind, RolloutState
from kto_ray.rollout import assignment
from kto_ray.serve.gateway.errors import ApiError, shortened
from kto_ray.status.readiness import Readiness, readiness
from kto_ray.store import Store, adapters, keys, replicas, rollouts
from kto_ray.store.faults import first_line

log = logging.getLogger(__name__)

REFRESH_S = 0.5  # how old the view may be; serve.drain_s must be well above it
SURE_S = 2.0  # while it is no older, the store is not away


@dataclass(frozen=True, slots=True)
class View:
    aliases: Mapping[str, str]
    rollout: RolloutState | None
    holdback: RolloutState | None
    base: RolloutState | None  # the holdback on the base model
    staff: Mapping[str, str]
    servable: frozenset[str]  # what an alias names and every live replica holds, and the base
    ready: Readiness
    keys: Mapping[str, Key]  # by their public ids, the revoked ones too

    def route(self, model: str, user: str | None, served_name: str) -> assignment.Route:
        """As `assignment.route`; but where another answers for a champion that cannot be loaded, no answer is of an
        arm, for the test is between the champion and its challenger.

        Raises:
            ApiError: 404, the model is not served here.
        """
        try:
            states = (self.rollout, self.servable, self.holdback, self.base)
            route = assignment.route(model, user, served_name, self.aliases, *states, self.staff)
        except assignment.UnknownModel as error:
            raise ApiError(404, shortened(str(error), model), param="model", code="model_not_found") from None
        if self.ready.answers == self.ready.champion:
            return route
        adapter = self.ready.answers if route.adapter == self.ready.champion else route.adapter
        return replace(route, adapter=adapter, arm=Arm.PINNED, rollout=None, holdback=None)

    def somebody_holds(self, adapter: str) -> bool:
        """Whether a live replica does, which may answer what another one cannot."""
        return any(adapter in replica.held for replica in self.ready.replicas)

    def splits(self, user: str) -> bool:
        """Whether it matters which conversation a user's request goes on with."""
        if self.ready.answers != self.ready.champion or assignment.of_staff(self.staff, user) is not None:
            return False
        return assignment.splits(self.aliases[CHAMPION], self.rollout, self.holdback, self.base)

    def go_on(self, drawn: assignment.Route, conversation: Conversation) -> assignment.Route:
        """As `assignment.go_on`."""
        champion, states = self.aliases[CHAMPION], (self.rollout, self.holdback, self.servable, self.base)
        return assignment.go_on(drawn, conversation, champion, *states)


class Viewer:
    """Holds the newest view; routing goes on with the last one where the store cannot be read."""

    def __init__(self, config: Config, store: Store) -> None:
        self._config, self._store = config, store
        self._one_at_a_time = threading.Lock()  # or an older look could replace a newer one
        self._answers = ""  # who did at the last look
        self._read_at, self._back_at = time.monotonic(), float("-inf")  # the last look; and when the store was back
        self.refresh()
        self._closed = threading.Event()
        threading.Thread(target=self._refresh_until_closed, daemon=True).start()

    @property
    def age_s(self) -> float:
        """How long ago the view was read."""
        return time.monotonic() - self._read_at

    def sure_of(self, adapter: str) -> bool:
        """Whether every live replica holds it. While the store is away nothing is sure: they may have let it go since,
        and some that are silent may have lacked it."""
        return self.age_s < SURE_S and adapter in self.view.servable

    def refresh(self) -> None:
        with self._one_at_a_time:
            self._look()

    def _look(self) -> None:
        config, began = self._config, time.monotonic()
        with self._store.read() as tx:
            ready = readiness(tx, config)
            aliases, test = adapters.aliases(tx, config.base_name), rollouts.live(tx)
            back, base = (rollouts.live(tx, kind) for kind in (RolloutKind.HOLDBACK, RolloutKind.BASE))
            known = {key.id: key for key in keys.every(tx)}
        if not ready.replicas and self._just_back(began):
            return
        if ready.answers != ready.champion and ready.answers != self._answers:
            log.error("%s answers in place of the champion %s, which a replica cannot load: %s", *_why(ready))
        self._answers = ready.answers
        # Who asks for a version by its name keeps it, but not for ever: it would keep others out of the engines' slots.
        servable = (held_by_all(ready.replicas) & frozenset(aliases.values())) | {config.base_name}
        staff = config.rollout.staff
        self.view = View(aliases, test, back, base, staff, servable, ready, known)
        self._read_at = began

    def _just_back(self, now: float) -> bool:
        """Whether the store was away for so long that all heartbeats in it are old. Whoever lives is heard of within a
        second or two: meanwhile the last view stands, or every version would be unknown, and nobody ready."""
        timeout_s = self._config.serve.heartbeat_timeout_s
        if self._back_at < self._read_at and now - self._read_at > replicas.BREAK * timeout_s:
            self._back_at = now
        return self._back_at > self._read_at and now - self._back_at < timeout_s

    def close(self) -> None:
        """Read no more; the last view stands."""
        self._closed.set()

    def _refresh_until_closed(self) -> None:
        while not self._closed.wait(REFRESH_S):
            try:
                self.refresh()
            except Exception as error:  # whatever it is: without this thread, requests go by an old view for ever
                log.warning("the view is %.0f s old: %s: %s", self.age_s, type(error).__name__, first_line(error))


def _why(ready: Readiness) -> tuple[str, str, str]:
    reasons = {replica.errors[ready.champion].reason for replica in ready.replicas if ready.champion in replica.errors}
    return ready.answers, ready.champion, "; ".join(sorted(reasons))
