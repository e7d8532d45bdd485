"""What an engine holds: each adapter's fault is its own and tried again, no slot is overfilled, no copy outlives its
use. Real files; the engine alone is a stand-in."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kto_ray.adapters import files
from kto_ray.adapters.publish import publish
from kto_ray.config import Config, load_config
from kto_ray.records.adapters import AdapterVersion
from kto_ray.serve.policy.shelf import Shelf
from tests.support.adapters import tensors, write
from tests.support.rows import manifest


class Engine:
    """The two calls of `AdapterEngine`, without vLLM: `faults` of a name are raised by its next loads, one each."""

    def __init__(self) -> None:
        self.held: dict[str, str] = {}
        self.faults: dict[str, list[Exception]] = {}
        self.unheld_fault: Exception | None = None
        self.loads = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def load_adapter(self, name: str, directory: str) -> None:
        self.loads += 1
        await self.gate.wait()
        if self.faults.get(name):
            raise self.faults[name].pop(0)
        assert Path(directory, "adapter_model.safetensors").is_file()
        self.held[name] = directory

    async def unload_adapter(self, name: str) -> None:
        if self.unheld_fault is not None:
            raise self.unheld_fault
        del self.held[name]


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("kto_ray.serve.policy.shelf.time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr("kto_ray.serve.policy.shelf.random", SimpleNamespace(uniform=lambda low, high: high))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setenv("KTO_RAY_CACHE", str(tmp_path / "cache"))
    return load_config(None, (f"home={tmp_path}", "serve.drain_s=2"))


def version(config: Config, number: int) -> AdapterVersion:
    weights = {name: number * tensor for name, tensor in tensors().items()}
    folder = write(Path(config.home) / f"checkpoint-{number}", weights)
    return publish(config, folder, number, manifest(), None, 1.0)


async def answers(name: str) -> None:
    pass


def copies(config: Config) -> int:
    return len(list((Path(config.home) / "cache" / "adapters").iterdir()))


def acted(config: Config, act: Callable[[Shelf, Engine], Awaitable[None]], probe: Any = answers) -> None:
    async def run() -> None:
        engine = Engine()
        await act(Shelf(config, engine, probe), engine)

    asyncio.run(run())


FAULTS = [
    ValueError("not of this model"),
    OSError("no route"),
    KeyError("r"),
    TypeError("no"),
    RecursionError(),
    MemoryError(),
    AssertionError(),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_any_fault_of_one_adapter_is_its_own_told_and_tried_again(config: Config, clock: Clock, fault: Any) -> None:
    bad, good = version(config, 1), version(config, 2)

    async def act(shelf: Shelf, engine: Engine) -> None:
        engine.faults = {bad.name: [fault]}
        await shelf.follow([bad, good])
        assert set(shelf.held) == {good.name} and set(shelf.faults) == {bad.name} and copies(config) == 1
        clock.now += 0.5
        await shelf.follow([bad, good])
        told = shelf.faults[bad.name]
        assert (told.refused, told.tries, told.age_s) == (isinstance(fault, ValueError), 1, 0.5)
        assert told.reason == (str(fault) or type(fault).__name__)
        clock.now += 0.5
        await shelf.follow([bad, good])
        assert set(shelf.held) == {bad.name, good.name} and shelf.faults == {} and copies(config) == 2

    acted(config, act)


def test_pauses_double_up_to_a_minute_and_begin_anew_after_a_success(config: Config, clock: Clock) -> None:
    one = version(config, 1)

    async def act(shelf: Shelf, engine: Engine) -> None:
        engine.faults = {one.name: [OSError("no route")] * 2000}
        pauses, at = list[float](), clock.now
        await shelf.load(one)
        while len(pauses) < 8:
            before = shelf.faults[one.name].tries
            while shelf.faults[one.name].tries == before:
                clock.now += 0.5
                await shelf.load(one)
            pauses.append(clock.now - at)
            at = clock.now
        assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
        assert shelf.faults[one.name].age_s == sum(pauses), "since the first try"
        shelf._troubles[one.name].tries = 5000
        clock.now += 60
        await shelf.load(one)
        assert shelf.faults[one.name].tries == 5001, "no number of tries is too large"
        engine.faults = {}
        clock.now += 60
        await shelf.load(one)
        assert shelf.held == (one.name,) and shelf.faults == {}
        clock.now += 60
        await shelf.follow([])
        engine.faults = {one.name: [OSError("again")]}
        await shelf.load(one)
        clock.now += 1
        await shelf.load(one)
        assert shelf.held == (one.name,)

    acted(config, act)


def test_pauses_differ_among_replicas(config: Config) -> None:
    one = version(config, 1)
    ends = set[float]()

    async def act(shelf: Shelf, engine: Engine) -> None:
        engine.faults = {one.name: [OSError("no route")]}
        await shelf.load(one)
        trouble = shelf._troubles[one.name]
        ends.add(trouble.again_at - trouble.began_at)

    for _ in range(5):
        acted(config, act)
    assert len(ends) == 5 and all(0.5 <= pause <= 1.0 for pause in ends)


def test_files_that_are_put_right_are_loaded(config: Config, clock: Clock) -> None:
    one = version(config, 1)
    weights = Path(one.uri, "adapter_model.safetensors")
    sound = weights.read_bytes()

    async def act(shelf: Shelf, engine: Engine) -> None:
        weights.write_bytes(b"cut")
        await shelf.follow([one])
        assert shelf.faults[one.name].refused and engine.loads == 0 and copies(config) == 0
        weights.write_bytes(sound)
        clock.now += 1
        await shelf.follow([one])
        assert shelf.held == (one.name,)

    acted(config, act)


def test_a_storage_that_is_away_is_no_fault_of_the_adapter(config: Config, clock: Clock) -> None:
    """A volume that is not mounted: neither does a round end for it, nor does a replica give its champion up."""
    one = version(config, 1)
    there = Path(one.uri).parent

    async def act(shelf: Shelf, engine: Engine) -> None:
        there.rename(away := there.with_name("away"))
        await shelf.follow([one])
        told = shelf.faults[one.name]
        assert not told.refused and str(there) in told.reason and copies(config) == 0
        away.rename(there)
        clock.now += 1
        await shelf.follow([one])
        assert shelf.held == (one.name,)

    acted(config, act)


def test_what_does_not_answer_leaves_no_slot_taken_and_is_not_refused(config: Config, clock: Clock) -> None:
    one = version(config, 1)

    async def mute(name: str) -> None:
        raise RuntimeError("no token came")

    async def act(shelf: Shelf, engine: Engine) -> None:
        await shelf.follow([one])
        assert not shelf.held and engine.held == {} and copies(config) == 0
        assert not shelf.faults[one.name].refused

    acted(config, act, mute)


def test_a_load_goes_on_when_its_request_leaves_and_others_wait_for_the_same(config: Config, clock: Clock) -> None:
    one = version(config, 1)

    async def act(shelf: Shelf, engine: Engine) -> None:
        engine.gate.clear()
        leaving, staying = asyncio.create_task(shelf.load(one)), asyncio.create_task(shelf.load(one))
        while not engine.loads:
            await asyncio.sleep(0.01)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        engine.gate.set()
        await staying
        assert shelf.held == (one.name,) and engine.loads == 1

    acted(config, act)


def test_a_storage_that_hangs_holds_up_no_other(config: Config, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck, other = version(config, 1), version(config, 2)
    back, reached = threading.Event(), files.fetch

    def fetched(asked: AdapterVersion, *rest: Any) -> str:
        if asked is stuck:
            assert back.wait(30)
        return reached(asked, *rest)

    monkeypatch.setattr(files, "fetch", fetched)
    monkeypatch.setattr("kto_ray.serve.policy.shelf.WAIT_S", 0.5)

    async def act(shelf: Shelf, engine: Engine) -> None:
        while other.name not in shelf.held:
            await shelf.follow([stuck, other])
        assert set(shelf.held) == {other.name} and shelf.loading and shelf.faults == {}
        clock.now += config.adapters.patience_s - 1
        assert shelf.faults == {}, "it may just be slow"
        clock.now += 2
        told = shelf.faults[stuck.name]
        assert set(shelf.faults) == {stuck.name} and not told.refused and "goes on loading" in told.reason
        await shelf.follow([other])
        assert shelf.faults == {}, "nobody wants it any more"
        back.set()
        while shelf.loading:
            await shelf.follow([stuck, other])
        assert set(shelf.held) == {stuck.name, other.name} and shelf.faults == {}

    acted(config, act)


def test_no_more_is_loaded_than_there_are_slots(config: Config, clock: Clock) -> None:
    """Another one would push one out that answers now."""
    every = [version(config, number) for number in range(1, 6)]

    async def act(shelf: Shelf, engine: Engine) -> None:
        await shelf.follow(every[:4])
        with shelf.using(every[0].name):
            await shelf.follow(every[1:])
            assert set(engine.held) == {one.name for one in every[:4]}
            told = shelf.faults[every[4].name]
            assert not told.refused and "all 4 slots (serve.max_loras) are taken" in told.reason
        clock.now += config.serve.drain_s
        await shelf.follow(every[1:])
        assert set(engine.held) == {one.name for one in every[1:]} and copies(config) == 4

    acted(config, act)


def test_a_copy_stays_as_long_as_the_engine_may_read_it(config: Config, clock: Clock) -> None:
    one = version(config, 1)

    async def act(shelf: Shelf, engine: Engine) -> None:
        await shelf.follow([one])
        copy = Path(engine.held[one.name])
        with shelf.using(one.name):
            clock.now += 60
            await shelf.follow([])
            assert copy.is_dir() and set(shelf.held) == {one.name}
        await shelf.follow([])
        assert copy.is_dir(), "a request may have been routed to it just now"
        clock.now += config.serve.drain_s
        await shelf.follow([])
        assert not copy.exists() and not shelf.held and engine.held == {}

    acted(config, act)


def test_a_request_that_comes_while_its_adapter_is_let_go_leaves_no_copy_behind(config: Config, clock: Clock) -> None:
    one = version(config, 1)

    async def act(shelf: Shelf, engine: Engine) -> None:
        await shelf.follow([one])
        loads, unload = [], engine.unload_adapter

        async def slowly(name: str) -> None:
            loads.append(asyncio.create_task(shelf.load(one)))
            await asyncio.sleep(0)
            await unload(name)

        engine.unload_adapter = slowly  # type: ignore[method-assign]
        await shelf.follow([])
        await asyncio.wait(loads)
        assert set(shelf.held) == {one.name} and copies(config) == 1
        engine.unload_adapter = unload  # type: ignore[method-assign]
        await shelf.follow([])
        assert shelf.held == () and engine.held == {} and copies(config) == 0

    acted(config, act)


def test_two_looks_at_once_let_go_of_the_same_once(config: Config, clock: Clock) -> None:
    one, other = version(config, 1), version(config, 2)

    async def act(shelf: Shelf, engine: Engine) -> None:
        await shelf.follow([one, other])
        await asyncio.gather(shelf.follow([]), shelf.follow([]))
        assert engine.held == {} and copies(config) == 0

    acted(config, act)


def test_an_engine_that_cannot_unload_ends_nothing(config: Config, clock: Clock) -> None:
    one, other = version(config, 1), version(config, 2)

    async def act(shelf: Shelf, engine: Engine) -> None:
        await shelf.follow([one])
        engine.unheld_fault = KeyError(one.name)
        await shelf.follow([other])
        assert shelf.held == (other.name,)

    acted(config, act)
