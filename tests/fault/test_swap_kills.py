"""Swaps under fire, while replicas are killed or come and what is stored is away: callers stream all the time, and get
whole answers, but for those that a killed replica had begun."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kto_ray.records.adapters import CHAMPION, PREVIOUS
from tests.support.callers import Callers, call, callers
from tests.support.fired import COME_S, answers_come, held, of_alias, past_load, settled
from tests.support.network import Proxy
from tests.support.service import kill
from tests.support.steered import Steered
from tests.support.swaps import (
    copy_of,
    known,
    loading,
    newest,
    on_trial,
    promote,
    published,
    put_back,
    swap,
    take_away,
)
from tests.support.watch import watched

pytestmark = [pytest.mark.fault, pytest.mark.timeout(1200)]
AWAY_S = 30.0


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
        on_trial(run, challenger)
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


def test_an_engine_that_is_killed_takes_its_replica_with_it(run: Steered) -> None:
    """Alive, the replica would refuse faster than the other one answers, until Serve had looked three times."""
    run.scale(2)
    settled(run)
    with callers(run) as asking:
        victim = run.live[0]
        engines = run.processes("VLLM::EngineCore")
        [engine] = [one for one in engines if victim["pid"] in (above.pid for above in one.parents())]
        asking.killed()
        kill(engine.pid)
        settled(run, without=(victim["replica"],))
