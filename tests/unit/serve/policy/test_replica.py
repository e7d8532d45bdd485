"""A replica's reconciling, on a real store and real adapter files; the engine alone is a stand-in."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
import sqlalchemy as sa

from kto_ray.adapters.files import fetch
from kto_ray.adapters.publish import publish
from kto_ray.config import Config, load_config
from kto_ray.paths import StorageAway
from kto_ray.processor import precision
from kto_ray.records.adapters import CHALLENGER, CHAMPION, AdapterVersion
from kto_ray.records.replicas import LoadFault, ReplicaReport
from kto_ray.serve.policy import replica as of_policy
from kto_ray.serve.policy.replica import Policy, llm_config
from kto_ray.serve.policy.reports import Reports
from kto_ray.serve.policy.shelf import Shelf
from kto_ray.status.readiness import readiness
from kto_ray.store import Store, adapters, replicas, snapshots
from kto_ray.store.schema import replicas as rows
from tests.support.adapters import tensors, write
from tests.support.engine import adapter_engine
from tests.support.provenance import seal

HI = {"messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setenv("KTO_RAY_CACHE", str(tmp_path / "cache"))
    return load_config(None, (f"home={tmp_path}", "serve.drain_s=2"))


class Bare(Policy):
    """Without Ray Serve around it, whose end it need not tell."""

    def __del__(self) -> None:  # Ray's is a coroutine that Serve awaits
        pass


def policy(config: Config, store: Store, refuses: tuple[str, ...] = ()) -> Any:
    """As its constructor leaves it."""
    made: Any = Bare.__new__(Bare)
    made._config, made._store, made._replica = config, store, "r1"
    made._precision = precision("cpu", "float32")
    made.engine = adapter_engine(refuses)
    made._shelf = Shelf(config, made.engine, made._probe)
    made._reports = Reports(config, store, made._shelf, made._replica, made._precision)
    return made


def challenger(config: Config, store: Store, number: int, scale: float = 1.0) -> AdapterVersion:
    """A published version that every replica is to hold."""
    folder = Path(config.home) / f"checkpoint-{number}"
    manifest, uri = seal(Path(config.home), {"train": [("c1", "ann")]}, number)
    weights = {name: scale * number * tensor for name, tensor in tensors().items()}
    version = publish(config, write(folder, weights), number, manifest, None, 1.0)
    with store.write() as tx:
        snapshots.insert(tx, manifest, uri)
        adapters.insert(tx, version)
        adapters.set_alias(tx, CHALLENGER, version.name, 1.0)
    return version


async def turn(replica: Any) -> None:
    await replica._reconcile()
    await replica._tell()


def reported(store: Store) -> ReplicaReport:
    with store.read() as tx:
        (report,) = replicas.live(tx, 60.0)
    return report


def test_it_holds_what_is_wanted_and_lets_go_once_nothing_uses_it(config: Config, sqlite_store: Store) -> None:
    async def act() -> None:
        replica = policy(config, sqlite_store)
        first = challenger(config, sqlite_store, 1)
        await turn(replica)
        assert reported(sqlite_store).held == (first.name,) and first.name in replica.engine.held
        second = challenger(config, sqlite_store, 2)
        with replica._shelf.using(first.name):
            await turn(replica)
            assert set(replica.engine.held) == {first.name, second.name}, "a request still runs on it"
        await turn(replica)
        assert first.name in replica.engine.held, "a request may have been routed to it just now"
        replica._shelf._last_used[first.name] -= config.serve.drain_s
        await turn(replica)
        assert set(replica.engine.held) == {second.name}
        assert reported(sqlite_store).held == (second.name,)

    asyncio.run(act())


def test_what_has_changed_is_told_at_once(config: Config, sqlite_store: Store) -> None:
    async def told(reached: Callable[[ReplicaReport], bool]) -> None:
        async with asyncio.timeout(60):
            while not reached(reported(sqlite_store)):
                await asyncio.sleep(0.01)

    async def act() -> None:
        refused = challenger(config, sqlite_store, 1)
        replica = policy(config, sqlite_store, (refused.name,))
        await replica._tell()
        telling = asyncio.create_task(replica._forever(lambda: replica._shelf.change(3600.0), replica._tell))
        await replica._reconcile()
        await told(lambda report: refused.name in report.errors)
        held = challenger(config, sqlite_store, 2)
        await replica._reconcile()
        await told(lambda report: report.held == (held.name,))
        with sqlite_store.write() as tx:
            adapters.set_alias(tx, CHALLENGER, None, 1.0)
        await replica._reconcile()
        await told(lambda report: report.held == ())
        telling.cancel()

    asyncio.run(act())


@pytest.mark.parametrize(
    "damage", ["the engine refuses it", "its file has changed", "its config is empty", "its manifest names no files"]
)
def test_what_cannot_be_loaded_is_told_and_not_held(config: Config, sqlite_store: Store, damage: str) -> None:
    async def act() -> None:
        version = challenger(config, sqlite_store, 1)
        replica = policy(config, sqlite_store, (version.name,) if "engine" in damage else ())
        if "its file" in damage:
            Path(version.uri, "adapter_model.safetensors").write_bytes(b"changed")
        if "config" in damage:
            Path(version.uri, "adapter_config.json").write_text('{"peft_type": "LORA"}')
        if "manifest" in damage:
            Path(version.uri, "manifest.json").write_text("{}")
        await turn(replica)
        report = reported(sqlite_store)
        assert report.held == () and set(report.errors) == {version.name}
        fault = report.errors[version.name]
        assert fault.refused and fault.tries == 1 and 0 <= fault.age_s < 60
        (answer,) = [item async for item in replica.generate(HI, version.name)]
        told = json.loads(answer)["error"]
        assert told["code"] == 503 and str(config.home) not in told["message"], "paths are for operators"

    asyncio.run(act())


def test_a_request_that_comes_before_the_adapter_loads_it(config: Config, sqlite_store: Store) -> None:
    async def act() -> None:
        version = challenger(config, sqlite_store, 1)
        replica = policy(config, sqlite_store)
        (answer,) = [item async for item in replica.generate(HI, version.name)]
        assert json.loads(answer)["choices"][0]["message"]["content"] == "Hi"
        assert version.name in replica.engine.held
        (unknown,) = [item async for item in replica.generate(HI, "policy@v9")]
        assert "not in the store" in json.loads(unknown)["error"]["message"]
        (bad,) = [item async for item in replica.generate({"messages": "Hi"}, config.base_name)]
        assert json.loads(bad)["error"]["code"] == 400

    asyncio.run(act())


def out_of_reach(away: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of these versions, until they are taken out of the set."""
    reached = fetch

    def fetched(version: AdapterVersion, *rest: Any) -> str:
        if version.name in away:
            raise StorageAway("object storage cannot be reached")
        return reached(version, *rest)

    monkeypatch.setattr("kto_ray.adapters.files.fetch", fetched)


def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pause between two tries."""
    monkeypatch.setattr("kto_ray.serve.policy.shelf.FIRST_S", 0.0)


def as_champion(store: Store, version: AdapterVersion) -> None:
    with store.write() as tx:
        adapters.set_alias(tx, CHAMPION, version.name, 1.0)


def test_files_out_of_reach_are_no_refusal_and_hold_up_no_other(
    config: Config, sqlite_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def act() -> None:
        first, second = challenger(config, sqlite_store, 1), challenger(config, sqlite_store, 2)
        as_champion(sqlite_store, first)
        replica, away = policy(config, sqlite_store), {first.name}
        out_of_reach(away, monkeypatch)
        monkeypatch.setattr(of_policy, "LACKS_S", 0.0)
        await turn(replica)
        report = reported(sqlite_store)
        assert report.held == (second.name,), "one that waits for files is alive"
        assert report.errors[first.name] == LoadFault("object storage cannot be reached", False, 1, ANY)
        (answer,) = [item async for item in replica.generate(HI, first.name)]
        told = json.loads(answer)["error"]
        assert told["code"] == 503 and "cannot be loaded now" in told["message"]
        away.clear()
        await turn(replica)
        assert reported(sqlite_store).errors[first.name].tries == 1, "its pause is not over"
        at_once(monkeypatch)
        replica._shelf._troubles[first.name].again_at = 0.0
        await turn(replica)
        assert reported(sqlite_store).held == (first.name, second.name) and reported(sqlite_store).errors == {}

    asyncio.run(act())


def quick(config: Config, **section: Any) -> Config:
    serve = config.serve.model_copy(update={"reconcile_s": 0.01})
    return config.model_copy(update={"serve": serve, "adapters": config.adapters.model_copy(update=section)})


def test_a_replica_that_starts_waits_for_its_champion(
    config: Config, sqlite_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files away, then the store, then neither."""

    async def act() -> None:
        version = challenger(config, sqlite_store, 1)
        as_champion(sqlite_store, version)
        replica, reached = policy(quick(config), sqlite_store), fetch
        at_once(monkeypatch)
        faults: list[Exception] = [StorageAway("gone"), sa.exc.OperationalError("SELECT 1", {}, Exception("gone"))]
        wanted = replica._desired

        def fetched(*asked: Any) -> str:
            if len(faults) == 2:
                raise faults.pop(0)
            return reached(*asked)

        def desired() -> Any:
            if len(faults) == 1:
                raise faults.pop()
            return wanted()

        monkeypatch.setattr("kto_ray.adapters.files.fetch", fetched)
        replica._desired = desired
        await replica._hold_champion()
        assert replica._shelf.held == (version.name,) and faults == []

    asyncio.run(act())


@pytest.mark.parametrize("why", ["refused", "out of reach for long"])
def test_a_champion_that_cannot_be_loaded_keeps_no_replica_out_unless_another_holds_it(
    config: Config, sqlite_store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, why: str
) -> None:
    async def act() -> None:
        version = challenger(config, sqlite_store, 1)
        as_champion(sqlite_store, version)
        at_once(monkeypatch)
        refuses = (version.name,) if why == "refused" else ()
        away = set() if refuses else {version.name}
        out_of_reach(away, monkeypatch)
        replica = policy(quick(config, patience_s=0.2), sqlite_store, refuses)
        other = ReplicaReport("r2", "node", 2, (version.name,))
        with sqlite_store.write() as tx:
            replicas.report(tx, other, 15.0)
        starting = asyncio.create_task(replica._hold_champion())
        await asyncio.sleep(0.5)
        assert not starting.done(), "the other one answers"
        with sqlite_store.write() as tx:
            replicas.report(tx, replace(other, held=()), 15.0)
        await asyncio.wait_for(starting, 30)
        assert f"comes in without the champion {version.name}" in caplog.text
        await replica._tell()
        with sqlite_store.read() as tx:
            ready = readiness(tx, config)
        assert (ready.ready, ready.champion, ready.answers) == (True, version.name, config.base_name)
        assert ready.replicas[0].errors[version.name].tries > 1
        away.clear()
        replica._shelf._engine.refuses = ()
        while version.name not in replica._shelf.held:
            await replica._reconcile()
        await replica._tell()
        with sqlite_store.write() as tx:
            replicas.report(tx, other, 15.0)
        with sqlite_store.read() as tx:
            assert readiness(tx, config).answers == version.name

    asyncio.run(act())


def test_a_storage_that_hangs_keeps_no_replica_out(
    config: Config, sqlite_store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither files nor an error come from it: the previous champion or the base model answers meanwhile."""
    back, reached = threading.Event(), fetch

    def fetched(*asked: Any) -> str:
        assert back.wait(30)
        return reached(*asked)

    async def act() -> None:
        version = challenger(config, sqlite_store, 1)
        as_champion(sqlite_store, version)
        monkeypatch.setattr("kto_ray.adapters.files.fetch", fetched)
        monkeypatch.setattr("kto_ray.serve.policy.shelf.WAIT_S", 0.3)
        replica = policy(quick(config, patience_s=0.2), sqlite_store)
        try:
            await asyncio.wait_for(replica._hold_champion(), 20)
            assert f"comes in without the champion {version.name}" in caplog.text
            with sqlite_store.read() as tx:
                ready = readiness(tx, config)
            assert (ready.ready, ready.answers) == (True, config.base_name)
            assert "goes on loading" in ready.replicas[0].errors[version.name].reason
        finally:
            back.set()
        while version.name not in replica._shelf.held:
            await replica._reconcile()
        await replica._tell()
        with sqlite_store.read() as tx:
            assert readiness(tx, config).answers == version.name

    asyncio.run(act())


def test_a_champion_that_changes_while_a_replica_comes_in_is_held_first(config: Config, sqlite_store: Store) -> None:
    async def act() -> None:
        first, second = challenger(config, sqlite_store, 1), challenger(config, sqlite_store, 2)
        as_champion(sqlite_store, first)
        replica = policy(quick(config), sqlite_store)
        with sqlite_store.write() as tx:
            adapters.set_alias(tx, CHALLENGER, None, 1.0)
        await replica._reconcile()
        with sqlite_store.write() as tx:  # the alias is just moving
            adapters.set_alias(tx, CHAMPION, second.name, 1.0)
            starting = asyncio.create_task(replica._hold_champion())
            await asyncio.sleep(0.5)
        await asyncio.wait_for(starting, 30)
        assert second.name in reported(sqlite_store).held

    asyncio.run(act())


def test_after_a_silence_it_is_heard_of_with_the_champion_of_now(
    config: Config, sqlite_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others went on without it."""

    async def act() -> None:
        as_champion(sqlite_store, challenger(config, sqlite_store, 1))
        replica = policy(config, sqlite_store)
        await turn(replica)
        with sqlite_store.write() as tx:
            tx.execute(rows.delete())
        champion = challenger(config, sqlite_store, 2)
        as_champion(sqlite_store, champion)
        replica._reports._told_at -= config.serve.heartbeat_timeout_s
        assert replica._reports.silent
        await asyncio.to_thread(replica._reports.come_back)
        with sqlite_store.read() as tx:
            assert replicas.live(tx, 60.0) == [], "it has not looked at what the champion is now"
        await replica._tell()
        assert champion.name in reported(sqlite_store).held
        assert not replica._reports.silent

        # What took too long to be told is none of the reports that come every second.
        before, write = reported(sqlite_store).heartbeat_at, sqlite_store.write

        @contextmanager
        def slowly() -> Iterator[sa.Connection]:
            with write() as tx:
                replica._reports._told_at -= config.serve.heartbeat_timeout_s
                yield tx

        monkeypatch.setattr(sqlite_store, "write", slowly)
        await replica._tell()
        assert reported(sqlite_store).heartbeat_at == before and replica._reports.silent
        monkeypatch.undo()
        await replica._tell()
        assert reported(sqlite_store).heartbeat_at > before

    asyncio.run(act())


@pytest.mark.parametrize("silent", [True, False])
@pytest.mark.parametrize("everywhere", [True, False])
def test_who_is_left_behind_without_the_store_asks_to_be_replaced(
    config: Config, sqlite_store: Store, monkeypatch: pytest.MonkeyPatch, silent: bool, everywhere: bool
) -> None:
    """And nobody else: while the store is away from all, none is asked for what the others hold and it does not."""

    async def act() -> None:
        monkeypatch.setattr(of_policy, "LACKS_S", 0.0)
        monkeypatch.setattr("ray.serve.llm.LLMServer.check_health", healthy)
        replica = policy(config, sqlite_store)
        replica._tasks = []
        await turn(replica)
        if silent:
            replica._reports._told_at -= config.serve.heartbeat_timeout_s
        replica._version = away
        (answer,) = [item async for item in replica.generate(HI, "policy@v9", everywhere)]
        assert "the store is away" in answer
        if not (silent and everywhere):
            await replica.check_health()
            return
        with pytest.raises(RuntimeError, match="the others have gone on without it"):
            await replica.check_health()
        await replica._tell()
        await replica.check_health()

    async def healthy(_: Any) -> None:
        pass

    def away(_: str) -> Any:
        raise sa.exc.OperationalError("SELECT 1", {}, Exception("gone"))

    asyncio.run(act())


def test_an_outage_or_a_fault_of_ours_ends_no_reconciling(
    config: Config, sqlite_store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    async def act() -> None:
        replica = policy(config, sqlite_store)

        async def failing() -> None:
            raise KeyError("r")

        assert not await replica._survive(failing)
        assert "KeyError: 'r'" in caplog.text

    asyncio.run(act())


class Ended(BaseException):
    """In place of a process that ends."""


def ends(status: int) -> None:
    raise Ended(status)


@pytest.mark.parametrize("how", ["asked", "raises", "idle"])
def test_a_dead_engine_takes_its_replica_with_it(
    config: Config, sqlite_store: Store, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """So that another one answers what it was asked: it says nothing itself."""
    from vllm.v1.engine.exceptions import EngineDeadError

    async def act() -> None:
        replica = policy(config, sqlite_store)
        watch = asyncio.create_task(replica._die_with_engine())
        await asyncio.sleep(0.2)
        assert not watch.done()
        replica.engine._engine_client.errored = True
        if how == "idle":
            await watch
        if how == "raises":
            replica.engine.fault = EngineDeadError()
        answers = [item async for item in replica.generate(HI, config.base_name)]
        raise AssertionError(answers)

    monkeypatch.setattr("os._exit", ends)
    with pytest.raises(Ended):
        asyncio.run(act())


def test_the_engine_is_set_up_from_the_config() -> None:
    config = load_config(None, ("serve.max_loras=5", "serve.max_num_seqs=7", "serve.engine={block_size: 32}"))
    made = llm_config(config, "/models/base")
    assert made.model_id == "policy@base"
    engine = made.engine_kwargs
    assert (engine["max_loras"], engine["max_num_seqs"], engine["block_size"]) == (5, 7, 32)
    assert engine["scheduling_policy"] == "priority", "the gate's prompts wait behind users'"
    assert made.deployment_config["max_ongoing_requests"] == 28
    assert made.placement_group_config["strategy"] == "STRICT_PACK", "an engine's workers share a node"


def test_replicas_serve_the_revision_that_is_trained_and_surge_where_there_is_room() -> None:
    config = load_config(None, (f"model.revision={'a' * 40}", "serve.surge=true", "serve.grace_s=90"))
    made = llm_config(config, "org/model")
    assert (made.engine_kwargs["revision"], made.engine_kwargs["tokenizer_revision"]) == ("a" * 40, "a" * 40)
    how = made.deployment_config
    assert (how["max_surge_percent"], how["graceful_shutdown_timeout_s"]) == (100, 90.0)
    assert llm_config(load_config(), "org/model").deployment_config["max_surge_percent"] == 0
