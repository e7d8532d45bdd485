"""The benchmark of the full path: what both servers are asked, how ours is set up, and how the two compare."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from kto_ray.bench import serve
from kto_ray.bench.adapters import make
from kto_ray.bench.serve import Rates
from kto_ray.config import Config
from kto_ray.config.deciding import RolloutStage
from kto_ray.records.completions import Arm
from kto_ray.records.keys import id_of
from kto_ray.rollout.assignment import route
from kto_ray.store import adapters, keys, open_store, rollouts
from tests.support.experiments import tiny_config


def test_engine_arguments_are_told_as_flags() -> None:
    told = {"dtype": "bfloat16", "enable_lora": True, "enable_x": False, "revision": None, "extra": {"a": 1}}
    assert serve.flags(told) == [
        "--dtype", "bfloat16", "--enable-lora", "--no-enable-x", "--extra", '{"a": 1}',
    ]  # fmt: skip


def test_both_are_asked_for_as_much() -> None:
    ours, bare = serve._bodies(["policy"]), serve._bodies(["adapter-0", "adapter-1"])
    assert {body["model"] for body in ours} == {"policy"}
    assert [body["model"] for body in bare[:3]] == ["adapter-0", "adapter-1", "adapter-0"]
    for mine, peer in zip(ours, bare, strict=True):
        assert {**mine, "model": ""} == {**peer, "model": ""} and mine["temperature"] == 0
    assert len({body["user"] for body in ours}) == serve.USERS


def test_ours_is_under_test_and_behind_a_key(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "model")
    stages = (RolloutStage(name="ab", weight=0.5, decides=True),)
    config = config.model_copy(
        update={"home": str(tmp_path / "home"), "rollout": config.rollout.model_copy(update={"stages": stages})}
    )
    store = open_store(config.database_url)
    token = serve._prepare(config, store, [make(config, tmp_path / str(i), i) for i in range(2)])
    with store.read() as tx:
        [key], aliases, test = keys.every(tx), adapters.aliases(tx, "policy@base"), rollouts.live(tx)
    store.close()
    assert key.id == id_of(token) and key.opens(config.salt, token) and test is not None
    users = [key.principal.user(body["user"]) for body in serve._bodies(["policy"])]
    routes = [route("policy", user, "policy", aliases, test, set(aliases.values())) for user in users]
    challenged = sum(one.arm is Arm.CHALLENGER for one in routes)
    assert 16 < challenged < 48 and all(one.rollout == test.id for one in routes)


def test_both_are_up_in_turns_with_as_many_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, up, told = tiny_config(tmp_path / "model"), list[tuple[str, int]](), list[str]()

    def server(name: str) -> Any:
        @contextmanager
        def started(config: Config, folder: Path, weights: Sequence[str]) -> Iterator[serve.Server]:
            assert not list(folder.iterdir()) and len(weights) == 2
            up.append((name, config.serve.threads))
            yield serve.Server(config.serve.threads, [])

        return started

    def measured(server: serve.Server, at_once: int, seconds: float, name: str) -> Rates:
        return Rates(100.0 * server.port * (0.5 if name == serve.OURS else 1), 10.0, 5.0)

    monkeypatch.setattr(serve, "SERVERS", {name: server(name) for name in serve.SERVERS})
    monkeypatch.setattr(serve, "_measured", measured)
    report = serve.bench_serve(config, [1, 8], [2, 1], 5.0, 2, told.append)
    ours, bare = serve.OURS, serve.BARE
    assert up == [(bare, 2), (ours, 2), (bare, 1), (ours, 1), (ours, 2), (bare, 2), (ours, 1), (bare, 1)]
    rows = [(row["threads"], row["at_once"], row["ours"]["tokens_per_s"]) for row in report["streams"]]
    assert rows == [(2, 1, 100), (2, 8, 100), (1, 1, 50), (1, 8, 50)] and len(told) == len(up)
    assert all(row["throughput_ratio"] == 0.5 for row in report["streams"])


def rates(per_s: float, first: float, gap: float) -> Rates:
    return Rates(per_s, first, gap)


def test_ratios_are_of_turns_and_medians_of_these() -> None:
    ours = [rates(90.0, 110.0, 60.0), rates(96.0, 104.0, 50.0), rates(50.0, 250.0, 52.0)]
    bare = [rates(100.0, 100.0, 50.0), rates(100.0, 100.0, 50.0), rates(50.0, 200.0, 50.0)]
    found = serve.compared(8, ours, bare)
    assert found["throughput_ratio"] == pytest.approx(0.96) and found["added_first_p50_ms"] == pytest.approx(10.0)
    assert found["gap_p99_ratio"] == pytest.approx(1.04)
    assert found["met"] == {"throughput_ratio": True, "added_first_p50_ms": True, "gap_p99_ratio": True}
    worse = serve.compared(8, ours[:1], bare[:1])
    assert worse["met"] == {"throughput_ratio": False, "added_first_p50_ms": True, "gap_p99_ratio": False}
    rows = [{"threads": 2, **found}, {"threads": 1, **worse}]
    report = json.loads(json.dumps({"repeats": 3, "bars": serve.BARS, "streams": rows}))
    shown = io.StringIO()
    Console(file=shown, width=220).print(serve.table(report))
    told = shown.getvalue()
    assert told.count("MISSED") == 2 and "0.96, at least 0.95: met" in told and "+10, at most 10: met" in told
