"""The benchmark of swaps without a model: its adapters, its cycles, and what it makes of what it measured."""

from __future__ import annotations

import io
import json
import threading
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from rich.console import Console
from transformers import AutoModelForCausalLM

from kto_ray.adapters.files import check_adapter
from kto_ray.bench import swap
from kto_ray.bench.adapters import make, published
from kto_ray.bench.streams import Stream, Streamed
from kto_ray.bench.swap import Loads, Said
from kto_ray.bench.swapper import Swap, Swapper
from kto_ray.config import Config
from kto_ray.records.adapters import CHAMPION
from kto_ray.records.replicas import ReplicaReport
from kto_ray.store import Store, adapters, completions, replicas
from tests.support.experiments import tiny_config
from tests.support.rows import completion


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    home = tmp_path_factory.mktemp("tiny")
    return tiny_config(home).model_copy(update={"home": str(home / "home")})


def test_made_adapters_are_what_peft_loads_and_each_says_something_else(config: Config, tmp_path: Path) -> None:
    ids = torch.tensor([[5, 6, 7]])
    said = []
    for seed in (0, 1):
        base = AutoModelForCausalLM.from_pretrained(config.model.id)
        model = PeftModel.from_pretrained(base, make(config, tmp_path / str(seed), seed)).eval()
        unchanged = [name for name, weight in model.named_parameters() if "lora_" in name and not weight.any()]
        assert not unchanged, "each of its weights was loaded"
        said.append(model(ids).logits)
        with model.disable_adapter():
            assert (model(ids).logits - said[-1]).abs().max() > 0.01
    assert (said[0] - said[1]).abs().max() > 0.01
    version = published(config, str(tmp_path / "0"), 3)
    check_adapter(version, config.kto.rank, ())
    assert version.number == 3 and version.rank == config.kto.rank


@contextmanager
def following(store: Store, names: tuple[str, ...] = ("r0", "r1")) -> Iterator[list[tuple[str, ...]]]:
    """Replicas that hold what is desired, one after the other; the list is what all of them held, over time."""
    seen: list[tuple[str, ...]] = []
    stopped = threading.Event()

    def follow() -> None:
        while not stopped.wait(0.02):
            for name in names:
                with store.write() as tx:
                    held = tuple(version.name for version in adapters.desired(tx))
                    replicas.report(tx, ReplicaReport(name, "node", 1, held), 15.0)
                stopped.wait(0.05)
            if held not in seen[-1:]:
                seen.append(held)

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        yield seen
    finally:
        stopped.set()
        thread.join()


def test_a_cycle_ends_when_all_hold_the_new_one_and_none_the_old(
    config: Config, sqlite_store: Store, tmp_path: Path
) -> None:
    two = config.model_copy(update={"serve": config.serve.model_copy(update={"replicas": 2})})
    weights = [make(two, tmp_path / str(i), i) for i in range(2)]
    swapper = Swapper(two, sqlite_store, weights)
    swapper.begin()
    with following(sqlite_store) as seen:
        found = [swapper.cycle() for _ in range(2)]
        time.sleep(0.3)
    first, second, third = swapper.versions
    assert swapper.versions == {first: 0, second: 1, third: 0}
    assert {(first, second), (second,), (second, third), (third,)} <= set(seen), "both at once, then the new one alone"
    assert all(one.publish_s > 0 and one.serving_s > 0.05 and one.released_s > 0.05 for one in found)
    with sqlite_store.read() as tx:
        assert adapters.aliases(tx, "policy@base") == {CHAMPION: third}
        assert [one.name for one in adapters.every(tx)] == [first, second, third]


def test_a_replica_that_does_not_load_is_named(
    config: Config, sqlite_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kto_ray.bench.swapper.PATIENCE_S", 0.3)
    two = config.model_copy(update={"serve": config.serve.model_copy(update={"replicas": 2})})
    swapper = Swapper(two, sqlite_store, [make(two, tmp_path / "0", 0)])
    swapper.begin()
    with following(sqlite_store, ("r0",)), pytest.raises(RuntimeError, match="1 live replicas did not load policy@v2"):
        swapper.cycle()


PROMPT, ANSWER = (1, 2), (3, 4, 5, 6)


def stream(name: str, version: str = "policy@v1", text: str = "Hello.", first_ms: float = 10.0) -> Stream:
    return Stream(0, 200, name, version, text, 4, "length", True, None, first_ms, (1.0,))


def test_what_the_client_got_is_what_was_logged_or_it_counts_as_cut(sqlite_store: Store) -> None:
    ids = {"prompt_ids": array("i", PROMPT).tobytes(), "answer_ids": array("i", ANSWER).tobytes()}
    with sqlite_store.write() as tx:
        for name, version in (("whole", "v2"), ("short", "v2"), ("other", "v1"), ("base", "base")):
            completions.insert(tx, completion(name, text="Hello.", adapter=f"policy@{version}", **ids))
    streams = [
        stream("whole", "policy@v2"),
        stream("short", "policy@v2", text="Hell"),
        stream("other", "policy@v2"),
        stream("base", "policy@base"),
        stream("nowhere"),
    ]
    found = swap.as_logged(sqlite_store, {"policy@v1": 0, "policy@v2": 1}, streams)
    assert found == [Said(1, PROMPT, ANSWER), None, None, None, None]


def test_gaps_are_between_what_stands_there_and_the_likeliest() -> None:
    """vLLM tells nothing of the first token, and of each other one the likeliest and the one that stands there."""
    from vllm.logprobs import Logprob

    from kto_ray.bench.inside.swap import _gaps

    def at(**logprobs: float) -> dict[int, Logprob]:
        return {int(token[1:]): Logprob(logprob) for token, logprob in logprobs.items()}

    told = [None, at(_2=-9.0, _7=-1.0), at(_3=-0.5), at(_4=-2.5, _8=-0.5), at(_5=-1.0), at(_6=-1.5, _9=-1.25)]
    assert _gaps(Said(0, PROMPT, ANSWER), told) == [0.0, 2.0, 0.0, 0.25]


ALONE = Said(6, PROMPT, ANSWER)  # without swaps


def found_of(gaps: dict[Said, list[float]], said: list[Said | None], streams: list[Stream]) -> dict[str, object]:
    loads = Loads(
        [Streamed(1.0, (stream("w", first_ms=100.0),))],
        [Streamed(1.0, tuple(streams))],
        [Swap(0.1, 0.4, 3.0), Swap(0.1, 2.5, 3.0), Swap(0.1, 0.6, 3.0)],
    )
    return swap.figures(loads, said, [ALONE, None], {**gaps, ALONE: [0.0, 0.3, 0.0, 0.0]})


def test_an_answer_of_two_versions_is_told_from_a_near_tie() -> None:
    own, tie, mixed = (Said(i, PROMPT, ANSWER) for i in (0, 2, 4))
    gaps = {own: [0.0] * 4, tie: [0.0, 0.2, 0.0, 0.0], mixed: [0.0, 0.0, 4.0, 2.0]}
    gaps |= {swap._of_next(mixed): [9.0, 9.0, 0.0, 0.0]}  # its second half is what the next one says too
    gaps |= {swap._of_next(own): [0.0, 0.0, 0.0, 5.0], swap._of_next(tie): [0.0, 0.0, 3.0, 0.0]}
    failed = Stream(0, 503, "", "", "", 0, None, True, "busy", None, ())
    streams = [stream("a"), stream("b"), stream("c", first_ms=119.0), stream("d"), failed]
    found = found_of(gaps, [own, tie, mixed, None, None], streams)
    assert (found["answers"], found["failed"], found["truncated"], found["mixed"]) == (5, 1, 1, 1)
    assert found["other_version_seen_share"] == pytest.approx(2 / 3)
    assert found["exact_share"] == pytest.approx(1 / 3) and found["largest_gap_nats"] == 4.0
    assert found["largest_gap_without_nats"] == 0.3
    assert found["first_p99_ratio"] == pytest.approx(1.19)
    assert found["serving_s"] == 2.5 and found["serving_p50_s"] == 0.6


def test_the_table_tells_each_bar() -> None:
    own = Said(0, PROMPT, ANSWER)
    found = found_of({own: [0.0] * 4, swap._of_next(own): [5.0] * 4}, [own], [stream("a", first_ms=150.0)])
    report = {**found, "cycles": 3, "adapter_mb": 9.8, "replicas": 2, "load_per_s": 3.0, "bars": swap.BARS}
    report |= {"met": {name: found[name] <= bar for name, bar in swap.BARS.items()}, "aim_serving_s": 0.5}  # type: ignore[operator]
    shown = io.StringIO()
    Console(file=shown, width=200).print(swap.table(json.loads(json.dumps(report))))
    told = shown.getvalue()
    assert told.count("MISSED") == 2 and "at most 1.2: MISSED" in told and "at most 2: MISSED" in told
    assert "3 cycles of 9.8 MB on 2 replicas" in told and "100.0%" in told
