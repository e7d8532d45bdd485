"""Swaps under fire: one service with the real engine, two replicas and a store that can be away, and callers who stream
all the time. Whatever happens to adapters, they get whole answers, but for those that a killed replica had begun."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from kto_ray.adapters.publish import sign
from kto_ray.adapters.signature import signed
from kto_ray.bench.postgres import Server
from kto_ray.config import load_config
from kto_ray.paths import ADAPTER_CONFIG, ADAPTER_MANIFEST, ADAPTER_WEIGHTS
from kto_ray.records.adapters import CHALLENGER, CHAMPION, PREVIOUS, AdapterVersion
from kto_ray.store import adapters, open_store
from tests.support.adapters import known_anew
from tests.support.callers import Callers, call, callers
from tests.support.network import Proxy, proxied
from tests.support.service import kill
from tests.support.steered import Steered, steered
from tests.support.swaps import (
    aliases,
    copy_of,
    known,
    loading,
    newest,
    point,
    promote,
    published,
    put_back,
    swap,
    take_away,
    testing,
)
from tests.support.watch import watched

pytestmark = [pytest.mark.fault, pytest.mark.timeout(1200)]

AWAY_S = 30.0
COME_S = 240.0  # that a replica may take to come: it loads the model, beside others on the same cores
OLD, NEW = "the-old-key-of-more-than-32-characters", "the-new-key-of-more-than-32-characters"
KEYS = f"adapters.signing_keys={OLD}"
SETTINGS = (
    "serve.replicas=2",
    "serve.threads=1",
    "serve.kv_cache_gb=1",
    "serve.heartbeat_timeout_s=10",
    "model.max_model_len=1024",
    "ray.num_cpus=12",
    "loop.enabled=false",
    KEYS,
)


@pytest.fixture(scope="module")
def store_proxy(postgres_server: Server) -> Iterator[Proxy]:
    address = sa.make_url(postgres_server.url)
    assert address.host is not None and address.port is not None
    with proxied(address.host, address.port) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def run(
    postgres_server: Server, store_proxy: Proxy, tmp_path_factory: pytest.TempPathFactory, free_port: Any
) -> Iterator[Steered]:
    """Its champion is a second one, so that there is a previous champion."""
    there = postgres_server.empty("fire")
    url = sa.make_url(there).set(port=store_proxy.port).render_as_string(hide_password=False)
    with steered(tmp_path_factory.mktemp("fire"), free_port(), f"store_url={url}", *SETTINGS) as started:
        started.store = open_store(there)  # the tests' own way to it is never away
        swap(started)
        swap(started)
        yield started


def of_alias(run: Steered, alias: str) -> AdapterVersion:
    with run.store.read() as tx:
        found = adapters.get(tx, adapters.aliases(tx, run.config.base_name)[alias])
    assert found is not None
    return found


def settled(run: Steered, number: int = 2, without: tuple[str, ...] = (), timeout_s: float = COME_S) -> None:
    """Wait until so many replicas are live, none of them `without`, each with the champion, and it answers."""
    began = time.monotonic()

    def is_so() -> bool | None:
        told, champion = run.client.get("/readyz").json(), aliases(run)[CHAMPION]
        live = told["replicas"]
        well = len(live) == number and told["answers"] == told["champion"] == champion
        return True if well and all(_well(one, champion, without) for one in live) else None

    run.wait(f"{number} replicas that hold the champion", is_so, timeout_s)
    print(f"{number} replicas hold the champion after {time.monotonic() - began:.0f} s")


def _well(replica: dict[str, Any], champion: str, without: tuple[str, ...]) -> bool:
    return champion in replica["held"] and champion not in replica["errors"] and replica["replica"] not in without


def ended(run: Steered, number: int, timeout_s: float = 120.0) -> Any:
    def is_over() -> Any:
        last = newest(run)
        assert last["id"] == number
        return last if last["stage"] == "done" else None

    return run.wait(f"the end of round {number}", is_over, timeout_s)


def past_load(run: Steered, number: int, timeout_s: float = COME_S) -> None:
    """Wait until every replica holds the round's candidate, and end it there: what the gate says is not asked here."""

    def is_past() -> bool | None:
        last = newest(run)
        assert last["id"] == number and last["outcome"] is None, last
        return True if last["stage"] == "gate" else None

    run.wait(f"round {number} loaded", is_past, timeout_s)
    assert run.client.post("/v1/loop/abort").status_code == 200


def damaged(version: AdapterVersion, other: AdapterVersion, how: str) -> AdapterVersion:
    """The version as the store is to know it, once its files are not what they were."""
    folder = Path(version.uri)
    if how == "deleted":
        shutil.rmtree(folder)
    elif how == "corrupted":
        weights = bytearray((folder / ADAPTER_WEIGHTS).read_bytes())
        weights[-1] ^= 1
        (folder / ADAPTER_WEIGHTS).write_bytes(weights)
    elif how == "swapped":
        shutil.rmtree(folder)
        shutil.copytree(other.uri, folder)
    else:
        (folder / ADAPTER_CONFIG).write_text("{}")
        version = known_anew(version)
        (folder / ADAPTER_MANIFEST).write_text(json.dumps(signed(version.manifest, (OLD,))))
    return version


REFUSED = {
    "deleted": "does not exist",
    "corrupted": "the file was changed after it was published",
    "swapped": "a name never points at other weights",
    "without keys": "adapter_config.json is damaged: peft_type: Field required",
}


def test_a_candidate_that_is_not_what_was_published_is_refused_in_words(run: Steered) -> None:
    before = aliases(run)
    with callers(run), watched(run):
        for how, words in REFUSED.items():
            candidate = known(run, damaged(published(run), of_alias(run, CHAMPION), how))
            told = ended(run, loading(run, candidate).id)
            assert told["outcome"] == "failed" and words in told["reason"], (how, told)
            assert aliases(run) == before
    settled(run)


def test_a_load_waits_for_a_slot_and_no_stream_is_cut(run: Steered) -> None:
    """Four slots: champion, previous champion, and two former challengers whose streams last."""
    former = [known(run, published(run)) for _ in range(2)]
    with callers(run, lanes=2), ThreadPoolExecutor(8) as pool:
        streams = []
        for version in former:
            point(run, CHALLENGER, version)
            run.wait(f"{version.name} held", lambda name=version.name: held(run, name), 60)  # type: ignore[misc]
            time.sleep(1)  # the gateways' view
            streams += [pool.submit(call, run, version.name, 600, True) for _ in range(4)]
        time.sleep(2)
        candidate = known(run, published(run))
        number = loading(run, candidate).id
        run.wait("a load that waits for a slot", lambda: True if "slots" in (newest(run)["reason"] or "") else None, 60)
        going_on = sum(not stream.done() for stream in streams)
        assert going_on and newest(run)["stage"] == "load", going_on
        past_load(run, number)
        assert [one.result().fault for one in streams] == [None] * len(streams)
        assert [one.result().versions for one in streams[:4]] == [{former[0].name}] * 4
    settled(run)


def held(run: Steered, name: str) -> bool | None:
    live = run.live
    return True if len(live) == 2 and all(name in one["held"] for one in live) else None


def test_a_replica_that_is_killed_in_mid_swap(run: Steered) -> None:
    with callers(run) as asking:
        candidate = known(run, published(run))
        victim = run.live[0]
        number = loading(run, candidate).id
        soon(lambda: copy_of(candidate).exists(), 30)
        asking.killed()
        kill(victim["pid"])  # while it loads the candidate
        past_load(run, number)
        settled(run, without=(victim["replica"],))

        challenger = known(run, published(run))
        testing(run, challenger)
        run.wait("the challenger held", lambda: held(run, challenger.name), 60)
        victim = run.live[1]
        with ThreadPoolExecutor(1) as pool:
            flip = pool.submit(promote, run, challenger)
            asking.killed()
            kill(victim["pid"])  # while the alias flips
            flip.result()
        settled(run, without=(victim["replica"],))
        answers_come(run, asking, challenger)


def soon(told: Callable[[], bool], timeout_s: float) -> None:
    """Return as soon as it is so."""
    deadline = time.monotonic() + timeout_s
    while not told():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_third_replica_starts_while_champions_change(run: Steered) -> None:
    with callers(run), watched(run) as watch:
        run.scale(3)
        began = time.monotonic()
        while len(run.live) < 3:
            assert time.monotonic() - began < COME_S
            swap(run)
        swap(run)
        settled(run, 3)
        run.scale(2)
        settled(run, 2)
    assert watch.most == 3 and len(watch.flips) > 2, (watch.most, watch.flips)


def test_the_adapters_storage_is_away_during_a_load(run: Steered) -> None:
    there = Path(of_alias(run, CHAMPION).uri).parent
    with callers(run), watched(run):
        candidate = known(run, published(run))
        there.rename(there.with_name("away"))
        number = loading(run, candidate).id
        time.sleep(AWAY_S)
        waits = newest(run)
        assert (waits["stage"], waits["outcome"]) == ("load", None) and "out of reach" in waits["reason"], waits
        there.with_name("away").rename(there)
        past_load(run, number)
    settled(run)


def test_the_store_is_away_during_a_load(run: Steered, store_proxy: Proxy) -> None:
    with callers(run):
        number = loading(run, known(run, published(run))).id
        store_proxy.refuse()
        time.sleep(AWAY_S)
        store_proxy.flow()
        stays_ready(run, 5)
        run.wait("the store", lambda: True if run.client.get("/v1/loop").status_code == 200 else None, 60)
        past_load(run, number)
        settled(run)
        swap(run)
    settled(run)


def stays_ready(run: Steered, seconds: float) -> None:
    """Also before the replicas are heard of again; and a version that is asked for by its name is there."""
    until, named = time.monotonic() + seconds, of_alias(run, PREVIOUS).name
    while time.monotonic() < until:
        told = run.client.get("/readyz")
        assert told.status_code == 200, told.text
        assert (fault := call(run, named, 2, True).fault) is None, fault


def test_a_champion_that_is_gone_has_the_previous_one_answer(run: Steered) -> None:
    """One of two replicas that starts anew stays out, for the other has it; when both do, the previous one answers."""
    champion, old = of_alias(run, CHAMPION), run.live
    with callers(run) as asking:
        taken = take_away(champion)
        restart(asking, old[0])
        told = f"adapter {champion.name} cannot be loaded"
        run.wait("a replica that cannot load it", lambda: True if told in run.logs else None, COME_S)
        answers_come(run, asking, champion)
        assert [one["replica"] for one in run.live] == [old[1]["replica"]]
        restart(asking, old[1])
        falls_back(run, asking, 2)
        put_back(champion, taken)
        heals(run, asking, 2)


def test_it_does_so_where_there_is_one_replica(run: Steered) -> None:
    run.scale(1)
    settled(run, 1)
    champion = of_alias(run, CHAMPION)
    with callers(run) as asking:
        taken = take_away(champion)
        restart(asking, run.live[0])
        falls_back(run, asking, 1)
        put_back(champion, taken)
        heals(run, asking, 1)


def restart(asking: Callers, replica: dict[str, Any]) -> None:
    """By Serve, once it is dead."""
    asking.killed()
    kill(replica["pid"])


def falls_back(run: Steered, asking: Callers, number: int) -> None:
    """Wait until so many replicas are live, all without the champion; the previous one answers, and it is told."""
    champion, previous = of_alias(run, CHAMPION), of_alias(run, PREVIOUS)

    def fallen() -> bool | None:
        told = run.client.get("/readyz").json()
        lacking = [champion.name in one["errors"] for one in told["replicas"]]
        return True if lacking == [True] * number and told["answers"] == previous.name else None

    run.wait("the previous champion answers", fallen, COME_S)
    answers_come(run, asking, previous)
    told = run.get("/readyz")
    assert told["ready"] and told["champion"] == champion.name
    assert all("does not exist" in one["errors"][champion.name]["reason"] for one in told["replicas"])
    assert "kto_ray_champion_replaced 1.0" in run.client.get("/metrics").text
    assert f"{previous.name} answers in place of the champion {champion.name}" in run.logs


def heals(run: Steered, asking: Callers, number: int) -> None:
    settled(run, number)
    answers_come(run, asking, of_alias(run, CHAMPION))
    assert "kto_ray_champion_replaced 0.0" in run.client.get("/metrics").text


def answers_come(run: Steered, asking: Callers, version: AdapterVersion) -> None:
    """What is asked from now on, as soon as the gateways know, is answered, and by this version."""
    since = time.monotonic() + 1
    run.wait("answers", lambda: asking.answered_by(since) or None, 120)
    time.sleep(3)
    assert asking.answered_by(since) == {version.name}


def test_the_signing_key_is_rotated_while_it_serves(run: Steered) -> None:
    """The new key comes in front of the old one, what serves is signed anew, and the old one is taken out."""
    run.scale(2)
    settled(run)
    both, new = f"adapters.signing_keys={NEW},{OLD}", f"adapters.signing_keys={NEW}"
    with callers(run) as asking:
        late = published(run)  # by the old key
        run.deploy(both)
        settled(run)
        for version in (of_alias(run, CHAMPION), of_alias(run, PREVIOUS)):
            sign(load_config(None, (*run.settings, both)), version)
        run.deploy(new)
        settled(run)
        told = ended(run, loading(run, known(run, late)).id)
        assert told["outcome"] == "failed" and "was signed by another key" in told["reason"], told
        fresh = known(run, published(run, load_config(None, (*run.settings, new))))
        testing(run, fresh)
        promote(run, fresh)
        answers_come(run, asking, fresh)
    settled(run)


def test_an_engine_that_is_killed_takes_its_replica_with_it(run: Steered) -> None:
    """Alive, the replica would refuse faster than the other one answers, until Serve had looked three times."""
    with callers(run) as asking:
        victim = run.live[0]
        engines = run.processes("VLLM::EngineCore")
        [engine] = [one for one in engines if victim["pid"] in (above.pid for above in one.parents())]
        asking.killed()
        kill(engine.pid)
        settled(run, without=(victim["replica"],))
