"""Controllers without Ray, on clocks that are set: every bound of a transaction and every act is told, so that a test
may end a process there, or let another act; and the users and replicas around them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import sqlalchemy as sa

from kto_ray.config import Config
from kto_ray.loop.lease import LostLease
from kto_ray.loop.seen import Seen
from kto_ray.loop.step import Loop
from kto_ray.records.adapters import CHAMPION, PREVIOUS, AdapterVersion
from kto_ray.records.evaluation import GateDecision, GateReport
from kto_ray.records.replicas import ReplicaReport
from kto_ray.records.requests import Act
from kto_ray.records.rollouts import RolloutKind
from kto_ray.records.training import Trained, TrainProgress
from kto_ray.rollout.assignment import Route, route
from kto_ray.store import Store, adapters, completions, feedback, leases, replicas, requests, rollouts, rounds, schema
from kto_ray.store import database as databases
from kto_ray.store.schema import metadata
from tests.support import rows

HOUR_S, DAY_S = 3600.0, 86_400.0
BEGAN = 500_000 * HOUR_S  # of every life, seconds since the epoch
SPREAD_S = 10.0  # after which every gateway routes by a new stage
TICK_S = 1.0
# What a controller does, told before and after.
CHANGES = ("commit", "committed", "start", "started", "cancel", "cancelled", "clear", "cleared")
IMPATIENT = databases.Patience(statement_s=5, lock_s=0.05)  # two controllers in one thread wait for no lock

RULES: dict[str, Any] = {
    "stages": [
        {"name": "canary", "weight": 0.4, "exposed": 3},
        {"name": "ab", "weight": 0.5, "decides": True},
    ],
    "alpha": 0.4,
    "omega": 0.9,
    "harm_alpha": 0.3,
    "min_users": 4,
    "max_users": 400,
    "min_hours": 0,
    "settle_hours": 1,
    "new_users": True,
    "max_fault_rise": 1.0,
    "holdback": 0.3,
}


class Killed(BaseException):
    """A controller's process ends here."""


class Clocks:
    """The time as it is, and by how much the clocks of the store and of each controller are wrong."""

    def __init__(self) -> None:
        self.now = BEGAN
        self.store_s = 0.0
        self.wall_s: dict[str, float] = {}
        self.monotonic_s: dict[str, float] = {}
        self.who = ""  # whose code runs

    def time(self) -> float:
        return self.now + self.wall_s.get(self.who, 0.0)

    def monotonic(self) -> float:
        return self.now + self.monotonic_s.get(self.who, 0.0)

    def store(self, _: sa.Connection) -> sa.ColumnElement[float]:
        return sa.literal(self.now + self.store_s, sa.Double())


Hook = Callable[[str], None]


def nothing(_: str) -> None:
    """Of what is told."""


class Told(Store):
    """A controller's store, which tells where transactions begin and end. It does not wait for the disk."""

    def __init__(self, url: str) -> None:
        super().__init__(url, IMPATIENT)
        self.hook: Hook = nothing
        self.check: Callable[[sa.Connection], None] = lambda _: None  # each transaction, before it commits
        self.changed = False  # something beside leases
        self.inside = False  # a writing transaction
        if self.sqlite:
            for engine in (self.engine, self._readers):
                sa.event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=OFF"))
        sa.event.listen(self.engine, "before_cursor_execute", self._note)

    def _note(self, _: Any, __: Any, statement: str, *___: Any) -> None:
        self.changed |= bool(re.match(r"(INSERT INTO|UPDATE|DELETE FROM) (?!leases)", statement))

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        self.hook("begin")
        try:
            with super().write() as tx:
                self.inside = True
                yield tx
                self.hook("commit")
                self.check(tx)
        finally:
            self.inside = False
        self.hook("committed")

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        with super().read() as tx:
            yield tx
        self.hook("read")


@dataclass
class Task:
    """A job. It takes two looks, and ends with the process that started it; what it published before stays."""

    of: str
    name: str
    arguments: tuple[Any, ...]
    looks: int = 0


class Cluster:
    """In place of Ray and `loop.work`: what was started, by whom, and what the workers of trainings hold."""

    def __init__(self, clocks: Clocks) -> None:
        self._clocks = clocks
        self.hook: Hook = nothing
        self.started: list[tuple[Any, ...]] = []
        self.running: list[Task] = []
        self.placed: set[str] = set()  # runs whose workers hold what others may not have

    def start(self, function: Any, config: Config, *arguments: Any) -> Task:
        self.hook("start")
        task = Task(self._clocks.who, function.__name__, arguments)
        self.started.append((task.name, *(getattr(each, "name", each) for each in arguments if each is not None)))
        self.running.append(task)
        if task.name == "learn":
            self.placed.add(arguments[0])
        self.hook("started")
        return task

    def wait(self, tasks: list[Task], timeout: float) -> tuple[list[Task], list[Task]]:
        [task] = tasks
        task.looks += 1
        return ([task], []) if task.looks > 1 else ([], [task])

    def get(self, task: Task) -> Any:
        self._end(task)
        if task.name == "learn":
            self.placed.discard(task.arguments[0])
        return _result(task, self._clocks.time())

    def cancel(self, task: Task) -> None:
        self.hook("cancel")
        self._end(task)
        self.hook("cancelled")

    def clear(self, _: Config, run: str) -> None:
        self.hook("clear")
        self.placed.discard(run)
        self.hook("cleared")

    def lose(self, who: str) -> None:
        """The jobs of a process that is gone."""
        self.running = [task for task in self.running if task.of != who]

    def _end(self, task: Task) -> None:
        if task in self.running:
            self.running.remove(task)


def _result(task: Task, now: float) -> Any:
    if task.name == "seal":
        return rows.manifest(created_at=now)
    if task.name == "learn":
        _, number, _, champion, _ = task.arguments
        parent, sealed = champion.name if champion is not None else None, rows.manifest().id
        version = AdapterVersion(f"policy@v{number}", number, now, "u", "0" * 64, sealed, parent, "policy@base", 8)
        return Trained(version, ({"step": 1, "loss": 0.5},), {"steps": 1, "tokens_per_s": 9.0, "train_s": 1.0})
    assert task.name == "examine"
    candidate = task.arguments[1]
    return GateReport(candidate.name, candidate.snapshot, now, GateDecision.PROMOTE_TO_CANARY, ("sane",), {})


class AtOnce(ThreadPoolExecutor):
    """In the thread that asks, so that a life is the same each time."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future = Future[Any]()
        future.set_result(fn(*args, **kwargs))
        return future


class Actor(Loop):
    """The loop, of one process. What it draws at random depends on the hour alone, so that lives can be compared."""

    def __init__(self, config: Config, who: str, clocks: Clocks) -> None:
        self.who, self._clocks = who, clocks
        self.looks = False  # it has made sure of its lease in this tick
        self.past: list[str] = []  # who has acted since
        clocks.who = who
        super().__init__(config, policy=None)
        self._hold, self._lease.hold = self._lease.hold, self._and_look  # type: ignore[method-assign]

    def step(self) -> bool:
        self._clocks.who, self.looks = self.who, False
        return super().step()

    def _and_look(self) -> bool:
        taken = self._hold()
        self.looks, self.past = True, []
        return taken

    def _observe(self, with_job: bool = False) -> Seen:
        hour = f"{int(self._clocks.now // HOUR_S):08x}"
        return replace(super()._observe(with_job), nonce=hour, salt=f"salt-{hour}")


@dataclass
class World:
    """One store, who acts on it, and what is around: one replica that holds what is asked for, and users who like the
    answers of `pleases`."""

    store: Store  # of users and replicas
    told: Told  # of controllers
    config: Config
    clocks: Clocks
    cluster: Cluster
    pleases: str = "policy@v1"
    hook: Hook = nothing  # told before and after all that controllers do
    actors: list[Actor] = field(default_factory=list)  # who ticks
    everybody: list[Actor] = field(default_factory=list)
    acts: Counter[str] = field(default_factory=Counter)  # by whom
    history: list[tuple[Any, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.note()
        self.told.hook = self.cluster.hook = self._tell
        self.told.check = self._check
        self.actors.append(self.another())

    def another(self) -> Actor:
        """A controller: a process of its own."""
        self.everybody.append(Actor(self.config, f"controller {self.controllers + 1}", self.clocks))
        return self.everybody[-1]

    @property
    def controllers(self) -> int:
        return len(self.everybody)

    def _tell(self, moment: str) -> None:
        if moment == "committed":
            self.note()
        self.hook(moment)

    def _check(self, tx: sa.Connection) -> None:
        """A controller's every transaction is of the lease's holder, and not on what another has changed since."""
        query = sa.select(schema.leases.c.holder).where(schema.leases.c.name == leases.CONTROLLER)
        [actor] = [each for each in self.everybody if each.who == self.clocks.who]
        assert tx.execute(query).scalar() == actor._lease._holder
        assert not actor.looks or set(actor.past) <= {actor.who}, "it acts on what another has changed since it looked"
        for each in self.everybody:
            each.past.append(actor.who)
        self.acts[actor.who] += 1

    def tick(self) -> bool:
        """One of each controller, which is replaced if it is killed there, and whether anything goes on."""
        self.told.changed = False
        for actor in tuple(self.actors):
            try:
                self.attempt(actor)
            except Killed:
                self._replace(actor)
        self.report()
        self.clocks.now += TICK_S
        return self.told.changed or bool(self.cluster.running)

    def attempt(self, actor: Actor) -> None:
        try:
            actor.step()
        except LostLease:
            assert self.controllers > 1

    def elsewhere(self, happens: Callable[[], None]) -> None:
        """While one controller stands still."""
        who, inside, changed = self.clocks.who, self.told.inside, self.told.changed
        happens()
        self.clocks.who, self.told.inside, self.told.changed = who, inside, changed or self.told.changed

    def gone(self, actor: Actor) -> None:
        """Its process."""
        self.actors.remove(actor)
        self.cluster.lose(actor.who)

    def _replace(self, actor: Actor) -> None:
        """The lease of the one before must run out first."""
        self.gone(actor)
        self.told.changed = True
        self.actors.append(self.another())
        with self.store.read() as tx:
            held = leases.holder(tx, leases.CONTROLLER) is not None
        if held:
            with pytest.raises(LostLease):
                self.actors[-1].step()
        self.clocks.now += leases.TTL_S + TICK_S

    def settle(self) -> None:
        """Tick until nothing goes on."""
        self.report()
        for _ in range(60):
            if not self.tick():
                return
        raise AssertionError("the loop does not come to rest")

    def report(self) -> None:
        with self.store.write() as tx:
            held = tuple(version.name for version in adapters.desired(tx))
            replicas.report(tx, ReplicaReport("r", "node", 1, held, dtype="float32"), 15.0)

    def note(self) -> None:
        """What users and operators see of the loop, where it has changed."""
        with self.store.read() as tx:
            tests = [(state.id, state.stage, state.status) for state in rollouts.latest(tx, 9)]
            walked = [(each.id, each.stage) for each in rounds.latest(tx, 9)]
            held = rollouts.live(tx, RolloutKind.HOLDBACK)
            seen = (adapters.aliases(tx, "policy@base"), tests, walked, held and (held.id, held.weight))
        if not self.history or self.history[-1] != seen:
            self.history.append(seen)

    def chat(self, number: int, name: str) -> None:
        """Users ask as they are routed, and judge."""
        self.clocks.now += SPREAD_S
        with self.store.read() as tx:
            aliases, held = adapters.aliases(tx, "policy@base"), {v.name for v in adapters.desired(tx)}
            test, holdback = rollouts.live(tx), rollouts.live(tx, RolloutKind.HOLDBACK)
        answers, thumbs, at = [], [], self.clocks.now
        for i in range(number):
            user, answer = f"u{i}", f"{name}-{i}"
            to: Route = route("policy", user, "policy", aliases, test, {*held, "policy@base"}, holdback)
            split = {"arm": to.arm, "rollout": to.rollout, "holdback": to.holdback, "adapter": to.adapter}
            answers.append(rows.completion(answer, user=user, created_at=at, **split))
            liked = to.adapter == self.pleases
            thumbs.append(rows.thumb(f"f-{answer}", answer, value=liked, user=user, created_at=at))
        with self.store.write() as tx:
            completions.insert_all(tx, answers)
            feedback.record_all(tx, thumbs)

    def say_something(self, number: int, name: str = "before") -> None:
        """Labels for a round, of users who like nothing."""
        pleases, self.pleases = self.pleases, "nothing"
        self.chat(number, name)
        self.pleases = pleases

    def ask(self, act: Act, target: str) -> None:
        with self.store.write() as tx:
            requests.ask(tx, act, self.clocks.now, target)

    def promoted(self, version: str) -> None:
        """A champion that was there before."""
        with self.store.write() as tx:
            made = AdapterVersion(version, 1, BEGAN, "u", "0" * 64, None, None, "policy@base", 8)
            adapters.insert(tx, made)
            adapters.set_alias(tx, CHAMPION, version, BEGAN)
            adapters.set_alias(tx, PREVIOUS, "policy@base", BEGAN)

    def end(self) -> dict[str, list[dict[str, Any]]]:
        """All rows of what the loop decides, but for times and numbers in the order of the store."""
        with self.store.read() as tx:
            return {name: _rows(tx, metadata.tables[name]) for name in OF_THE_LOOP}


OF_THE_LOOP = (
    "rounds",
    "trainings",
    "snapshots",
    "adapters",
    "gates",
    "aliases",
    "rollouts",
    "rollout_points",
    "trials",
    "exposures",
    "arrivals",
    "voters",
    "requests",
)
TIMES = re.compile(r"(^|_)(at|by|seq)$")


def _rows(tx: sa.Connection, table: sa.Table) -> list[dict[str, Any]]:
    order = [column for column in table.primary_key.columns]
    found = [_timeless(row) for row in tx.execute(sa.select(table).order_by(*order)).mappings()]
    if table.name == "requests":
        return [{name: value for name, value in row.items() if name != "id"} for row in found]
    return found


def _timeless(value: Any) -> Any:
    if isinstance(value, Mapping):
        kept = {name: each for name, each in value.items() if not TIMES.search(name)}
        return {name: list(each) if name == "stage_s" else _timeless(each) for name, each in kept.items()}
    return value


@contextmanager
def life(plain: Store, told: Told, config: Config) -> Iterator[World]:
    """A world that begins: with its users on one store, its controllers on the other, both of one database, which is
    emptied."""
    clocks = Clocks()
    cluster = Cluster(clocks)
    with pytest.MonkeyPatch.context() as over:
        for module in ("step", "lease"):
            over.setattr(f"kto_ray.loop.{module}.time", clocks)
        over.setattr("kto_ray.loop.clearing.ThreadPoolExecutor", AtOnce)
        over.setattr("kto_ray.loop.step.store_of", lambda *_, **__: told)
        over.setattr("kto_ray.loop.step.read_progress", lambda *_: _progress())
        over.setattr("kto_ray.store.clock.now", clocks.store)
        over.setattr("ray.wait", cluster.wait)
        over.setattr("ray.get", cluster.get)
        for name in ("start", "cancel", "clear"):
            over.setattr(f"kto_ray.loop.work.{name}", getattr(cluster, name))
        _empty(plain)
        told.hook = nothing
        yield World(plain, told, config, clocks, cluster)


def _progress() -> TrainProgress:
    figures: Any = {**dict.fromkeys(TrainProgress.__slots__, 1.0), "step": 1, "steps": 2}
    return TrainProgress(**figures)


def _empty(store: Store) -> None:
    kept = {"compatibility", "sequence"}
    with store.write() as tx:
        for table in reversed(metadata.sorted_tables):
            if table.name == "tallies":
                tx.execute(table.update().values({c: 0 for c in table.c if c.name != "slot"}))
            elif table.name not in kept:
                tx.execute(table.delete())
