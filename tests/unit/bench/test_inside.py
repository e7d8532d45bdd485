"""What benchmarks stand on: a process of one's own, rows sealed in memory, clocks; and one tiny experiment."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch

from kto_ray.bench.experiment import Work
from kto_ray.bench.inside import data, experiment, train
from kto_ray.bench.own_process import ask
from kto_ray.bench.sealed_rows import Memory, sealed
from kto_ray.config import Config
from kto_ray.data.tokens import load_tokenizer
from kto_ray.measured import record
from tests.support.experiments import judged, tiny_config


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return tiny_config(tmp_path_factory.mktemp("tiny"))


def test_an_experiment_moves_the_policy_towards_what_is_liked(config: Config) -> None:
    before = np.array(experiment.run(config, Work("none", judge=judged(4))).policy)
    found = experiment.run(config, Work("kto", judged(16), judged(4), [judged(1)[0]["prompt"]], max_tokens=3))
    moved = (np.array(found.policy) - before).reshape(-1, 2)
    assert (moved[:, 1] > moved[:, 0]).all()
    assert len(found.losses) == 4 and found.train_s > 0 and found.answer_tokens[0] <= 4


def test_sealed_rows_are_whole_micro_batches_of_both_classes(config: Config) -> None:
    tokenizer = load_tokenizer(config.model.id, None)
    texts, table = sealed(config, judged(16), tokenizer)
    labels = np.array(table["label"]).reshape(-1, 4)
    assert len(texts) == 16 and (labels.sum(axis=1) == 2).all()
    for text, row in zip(texts, table.to_pylist(), strict=True):
        assert tokenizer.decode(row["completion_ids"]).startswith(text["completion"][0]["content"])
        assert row["kl_completion_ids"]
    moved, _ = train._longest_first(texts, table, 4)
    assert sorted(map(str, moved)) == sorted(map(str, texts))


def test_a_timed_stream_keeps_what_its_reader_waited(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(Memory):
        def iter_batches(self, *, batch_size: int, **how: Any) -> Any:
            for batch in super().iter_batches(batch_size=batch_size):
                time.sleep(0.02)
                yield batch

    monkeypatch.setattr(data, "_until_ray_rests", lambda: None)
    _, table = sealed(config, judged(16), load_tokenizer(config.model.id, None))
    stream = data.Timed(Slow(table))
    for _ in stream.iter_batches(batch_size=4):
        time.sleep(0.05)  # the reader's own work is no wait
    assert len(stream.waits) == 4 and all(0.02 <= wait < 0.05 for wait in stream.waits[1:])
    assert data._peak("self") > 10 * 2**20


def test_matmul_flops_are_those_of_a_machine() -> None:
    assert 1e8 < train.matmul_flops(torch.float32, "cpu") < 1e15


def test_a_process_of_its_own_gives_what_it_found_and_tells_why_it_failed() -> None:
    assert ask("tests.support.halves", {"of": 4}, {}, "a half") == {"half": 2}
    with pytest.raises(RuntimeError, match=r"(?s)measuring a half failed.*KeyError"):
        ask("tests.support.halves", {}, {}, "a half")


def test_a_record_says_by_what_and_where() -> None:
    made = record(time.time() - 5)
    assert made["commit"] and made["cores"] >= 1 and made["processor"] and 5 <= made["took_s"] < 60
