"""A sealed snapshot as it is read: its row groups, some rows as text, and what of the store goes into the next one."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from kto_ray.config import Config
from kto_ray.config.serving import ModelSection
from kto_ray.data import show, stream
from kto_ray.data.near import alike, sketch
from kto_ray.data.seal import read_examples
from kto_ray.model import resolve_model
from kto_ray.store import Store, completions, feedback
from tests.support.provenance import seal
from tests.support.rows import completion, thumb


def test_a_person_sees_counts_hashes_and_rows(tmp_path: Path) -> None:
    manifest, uri = seal(tmp_path, {"train": [("c1", "ann")], "holdout": [("c2", "bo")]}, 1)
    rows = show.some_rows(uri, manifest, resolve_model(ModelSection()), None, 5)
    assert [row["label"] for row in rows] == ["desirable"] and rows[0]["tokens"] == 2
    told = io.StringIO()
    Console(file=told, width=200).print(show.page(manifest, [{**rows[0], "answer": "[b]bold"}]))
    assert manifest.id in told.getvalue() and "[b]bold" in told.getvalue() and "ann" not in told.getvalue()
    assert show.some_rows(uri, manifest, "no model is loaded for none", None, 0) == []


def test_row_groups_are_those_of_training_and_damage_is_told(tmp_path: Path) -> None:
    manifest, uri = seal(tmp_path, {"train": [("c1", "ann")], "holdout": [("c2", "bo")]}, 1)
    assert stream._groups(uri, manifest) == [("train-00000.parquet", 0)]
    Path(uri, "train-00000.parquet").write_bytes(b"cut")
    with pytest.raises(ValueError, match="train-00000"):
        stream._groups(uri, manifest)


def test_a_stream_that_moves_nothing_rests_ever_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    rests: list[float] = []
    monkeypatch.setattr("time.sleep", rests.append)
    metrics = SimpleNamespace(num_tasks_submitted=0, num_task_outputs_generated=0)
    executor: Any = SimpleNamespace(_topology=[SimpleNamespace(metrics=metrics)])
    pause = stream.Pause()
    for _ in range(3):
        pause.on_execution_step(executor)
    metrics.num_tasks_submitted = 1
    pause.on_execution_step(executor)
    assert rests == pytest.approx([0.01, 0.02, 0.03, 0.0])


def test_a_range_of_the_store_is_read_as_examples_up_to_a_number(tmp_path: Path, sqlite_store: Store) -> None:
    url = Config(home=str(tmp_path)).database_url
    with sqlite_store.write() as tx:
        for name, at in (("c1", 200.0), ("c2", 300.0)):
            completions.insert(tx, completion(name))
            feedback.record(tx, thumb(f"f-{name}", name, created_at=at))
    assert [e.completion_id for e in read_examples(url, ("", None))] == ["c1", "c2"]
    assert [e.completion_id for e in read_examples(url, ("", None), until=2)] == ["c1"]
    assert read_examples(url, ("c3", None)) == []


def test_nearly_the_same_text_shares_a_band_and_its_signature_agrees() -> None:
    words = [f"word{i}" for i in range(60)]
    asked = ({"role": "user", "content": "tell me"},)
    texts: Any = [(asked, " ".join(words)), (asked, " ".join([*words, "indeed"])), (asked, " ".join(words[::-1]))]
    bands, signatures = sketch(texts, 0.8)
    assert (bands[0] == bands[1]).any() and not (bands[0] == bands[2]).any()
    assert alike(signatures[:1], signatures[1:2], 0.8).all() and not alike(signatures[:1], signatures[2:], 0.8).any()
