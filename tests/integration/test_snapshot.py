"""Snapshots by real Ray Data with the real tokenizer."""

from __future__ import annotations

import dataclasses
import io
import json
import random
import types
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from rich.console import Console

from kto_ray.config import load_config
from kto_ray.data.manifest import load_manifest
from kto_ray.data.show import page
from kto_ray.data.snapshot import read_split
from kto_ray.data.stream import training_dataset
from kto_ray.model import resolve_model
from kto_ray.paths import Paths
from tests.support.snapshots import MICRO, config, example, files, splits, take, thumbs

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]


@pytest.fixture(scope="session")
def model_path() -> str:
    return resolve_model(load_config().model)


def test_same_examples_same_bytes_whatever_the_order_of_reading(tmp_path: Path, model_path: Any) -> None:
    examples = thumbs()
    first = take(tmp_path / "a", model_path, examples, blocks=2)
    shuffled = random.Random(1).sample(examples, len(examples))
    second = take(tmp_path / "b", model_path, shuffled, blocks=5)
    assert first.id == second.id
    assert files(tmp_path / "a", first) == files(tmp_path / "b", second)
    other = take(tmp_path / "b", model_path, examples, seed=1)
    assert other.id != first.id
    assert sorted(p.name for p in (tmp_path / "b" / "snapshots").iterdir()) == sorted([second.id, other.id])
    again = take(tmp_path / "a", model_path, examples)
    assert again == first == load_manifest(Paths(str(tmp_path / "a")).snapshot(first.id))  # reused: created_at too
    assert not list((tmp_path / "a" / "staging").iterdir())


def test_counts_splits_order_and_kl_pairs(tmp_path: Path, model_path: Any) -> None:
    examples = thumbs()
    manifest = take(tmp_path, model_path, examples, dropped={"task": 3})
    train, holdout = splits(tmp_path, manifest)
    assert not {r["user_hash"] for r in train} & {r["user_hash"] for r in holdout}
    assert len({r["user_hash"] for r in (*train, *holdout)}) == 30 and holdout
    assert {r["example_id"] for r in (*train, *holdout)} <= {e.id for e in examples}
    labels = Counter(r["label"] for r in train)
    assert (labels[True], labels[False]) == (manifest.n_desirable, manifest.n_undesirable)
    held = Counter(r["label"] for r in holdout)
    assert (held[True], held[False]) == (manifest.n_holdout_desirable, manifest.n_holdout_undesirable)
    assert len(train) % MICRO == 0 and manifest.sources == {
        "thumb": {"desirable": labels[True], "undesirable": labels[False]}
    }
    assert manifest.dropped.get("remainder", 0) == 90 - len(train) - len(holdout) < MICRO
    assert manifest.dropped["task"] == 3
    settings = config(tmp_path).data
    assert manifest.filters["max_user_share"] == 0.5 and len(manifest.filters) == 7
    assert all(getattr(settings, name) == value for name, value in manifest.filters.items())
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(page(manifest, []))
    shown = console.export_text()
    assert f"thumb: {labels[True]} desirable, {labels[False]} undesirable" in shown and "max_user_share 0.5" in shown
    mass_desirable = manifest.desirable_weight * labels[True]
    assert mass_desirable == pytest.approx(manifest.undesirable_weight * labels[False])
    by_split: Counter[str] = Counter()
    for shard in manifest.shards:
        by_split[shard.split] += shard.rows
        assert shard.rows <= 30 and (shard.split == "holdout" or shard.rows % MICRO == 0)
    assert by_split == {"train": len(train), "holdout": len(holdout)} and len(manifest.shards) > 2
    for start in range(0, len(train), MICRO):
        batch = train[start : start + MICRO]
        assert {r["label"] for r in batch} == {True, False}
        for i, row in enumerate(batch):
            assert row["kl_completion_ids"] == batch[i - 1]["completion_ids"]
            assert row["prompt_ids"] != batch[i - 1]["prompt_ids"]


# What a log can hold, however it came there: a row costs itself and no round.
ODD: tuple[dict[str, Any], ...] = (
    {"content": [{"type": "image_url"}]},
    {"content": ["Read this.", {"type": "text", "text": None}]},
    {"content": [7]},
    {"content": {"text": "a map"}},
    {"content": 7},
    {"content": "Hi", "role": None},
)


def test_filters(tmp_path: Path, model_path: Any) -> None:
    rows = thumbs(120, 40)
    flood = [example(1000 + i, "flood", True) for i in range(100)]
    latest = dataclasses.replace(rows[0], id="f" * 32, desirable=not rows[0].desirable, created_at=5000.0)
    copy = dataclasses.replace(rows[1], id="e" * 32, user="copycat", created_at=5000.0)
    long = example(2000, "long", True, question="word " * 80)
    odd = [
        dataclasses.replace(rows[2], id=f"d{i}".rjust(32, "d"), user=f"odd{i}", messages=({"role": "user", **message},))
        for i, message in enumerate(ODD)
    ]
    examples = [*rows, *flood, latest, copy, long, *odd]
    manifest = take(tmp_path, model_path, examples, max_user_share=0.05, holdout_share=0.001)
    train, holdout = splits(tmp_path, manifest)
    kept = [*train, *holdout]
    expected = {"contradiction": 1, "duplicate": 1, "too_long": 1, "unrenderable": len(ODD)}
    assert {k: manifest.dropped[k] for k in expected} == expected
    by_user = Counter(r["user_hash"] for r in train)
    assert max(by_user.values()) <= 0.05 * (len(train) + manifest.dropped.get("remainder", 0))
    assert manifest.dropped["user_cap"] == pytest.approx(94, abs=2)
    ids = {r["example_id"] for r in kept}
    assert rows[0].id not in ids and rows[1].id not in ids
    assert not ids & {long.id, *(row.id for row in odd)}
    assert len(examples) == len(kept) + sum(manifest.dropped.values())


def test_window_keeps_the_newest(tmp_path: Path, model_path: Any) -> None:
    manifest = take(tmp_path, model_path, thumbs(), max_rows=40, older_share=0.0)
    train, holdout = splits(tmp_path, manifest)
    assert min(r["created_at"] for r in (*train, *holdout)) >= 1050.0
    assert manifest.dropped["window"] == 50


def test_tokens_pairs_and_truncation_are_trls(tmp_path: Path, model_path: Any) -> None:
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import KTOConfig
    from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference, KTOTrainer

    length = 72
    rng = random.Random(0)
    examples = []
    for i in range(40):
        question, answer = " ".join(["why"] * rng.randint(1, 12)), f"Ünïcode {i}: " + "so it goes " * rng.randint(0, 12)
        examples.append(example(i, f"user{i}", i % 2 == 0, f"{i} {question}", answer))
    talk = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"})
    examples[0] = dataclasses.replace(examples[0], messages=(*talk, {"role": "assistant", "content": "Yes?"}, talk[1]))
    manifest = take(tmp_path, model_path, examples, max_length=length, holdout_share=0.001)
    train, _ = splits(tmp_path, manifest)
    of_id = {e.id: e for e in examples}
    ordered_examples = [of_id[row["example_id"]] for row in train]

    tokenizer = AutoTokenizer.from_pretrained(model_path)
    rows = Dataset.from_list(
        [
            {
                "prompt": [dict(m) for m in e.messages],
                "completion": [{"role": "assistant", "content": e.answer}],
                "label": e.desirable,
            }
            for e in ordered_examples
        ]
    )
    arguments = KTOConfig(
        output_dir=str(tmp_path / "trl"), max_length=length, per_device_train_batch_size=MICRO, use_cpu=True, bf16=False
    )
    trainer = types.SimpleNamespace(_tokenizer=tokenizer, calculate_KL=True)  # all that the method uses of a trainer
    theirs = KTOTrainer._prepare_dataset(trainer, rows, tokenizer, arguments, "train").to_list()
    assert len(theirs) == len(train)
    for row in theirs:  # the template goes on behind the end of a turn; no engine says that
        for name in ("completion_ids", "KL_completion_ids"):
            assert tokenizer.decode(row[name].pop()) == "\n"
    collate = DataCollatorForUnpairedPreference(pad_token_id=0, max_length=length)
    plain = DataCollatorForUnpairedPreference(pad_token_id=0)
    truncated = 0
    for start in range(0, len(train), MICRO):
        want = collate.torch_call(theirs[start : start + MICRO])
        mine = [{**r, "KL_completion_ids": r["kl_completion_ids"]} for r in train[start : start + MICRO]]
        got = plain.torch_call(mine)
        assert want.keys() == got.keys()
        for name in want:
            assert want[name].equal(got[name]), name
        truncated += sum(len(r["prompt_ids"]) + len(r["completion_ids"]) == length for r in mine)
    assert 0 < truncated < len(train)


def test_a_cut_off_answer_has_no_end_of_turn(tmp_path: Path, model_path: Any) -> None:
    from transformers import AutoTokenizer

    examples = [dataclasses.replace(e, ended=e.desirable) for e in thumbs()]
    manifest = take(tmp_path, model_path, examples)
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    of_id = {e.id: e for e in examples}
    for row in (row for split in splits(tmp_path, manifest) for row in split):
        end = "<|im_end|>" if row["label"] else ""
        assert tokenizer.decode(row["completion_ids"]) == of_id[row["example_id"]].answer + end


def test_damage_is_told(tmp_path: Path, model_path: Any) -> None:
    manifest = take(tmp_path, model_path, thumbs())
    uri = Paths(str(tmp_path)).snapshot(manifest.id)
    name = next(s.name for s in manifest.shards if s.split == "train")
    shard = Path(uri, name)
    good = shard.read_bytes()
    shard.write_bytes(good[:-9] + bytes([good[-9] ^ 1]) + good[-8:])
    with pytest.raises(ValueError, match=f"{name}.*damaged"):
        read_split(uri, manifest, "train")
    with pytest.raises(ValueError, match=f"{name}.*damaged"):
        training_dataset(uri, manifest)
    take(tmp_path, model_path, thumbs())  # the same snapshot again heals it
    assert shard.read_bytes() == good
    shard.unlink()
    with pytest.raises(ValueError, match=f"{name}.*missing"):
        read_split(uri, manifest, "train")
    path = Path(uri, "manifest.json")
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, "n_desirable": facts["n_desirable"] + 1}))
    with pytest.raises(ValueError, match="was changed"):
        load_manifest(uri)
    path.write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        load_manifest(uri)
    path.unlink()
    with pytest.raises(ValueError, match="no snapshot"):
        load_manifest(uri)


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([example(i, f"user{i}", True) for i in range(40)], "0 undesirable.*at least 1 more undesirable"),
        ([], "0 desirable and 0 undesirable"),
        ([example(1, "a", True), example(2, "b", False)], "fewer than one micro-batch"),
    ],
)
def test_unusable_training_sets_leave_nothing(tmp_path: Path, model_path: Any, examples: Any, message: Any) -> None:
    with pytest.raises(ValueError, match=message):
        take(tmp_path, model_path, examples, holdout_share=0.001)
    assert not list(tmp_path.rglob("*.*"))
    assert not (tmp_path / "snapshots").exists()


def test_stream_keeps_order_and_whole_micro_batches(
    tmp_path: Path, model_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kto_ray.data.shards.GROUP_BYTES", 1)  # one micro-batch a row group: many blocks
    manifest = take(tmp_path, model_path, thumbs())
    uri = Paths(str(tmp_path)).snapshot(manifest.id)
    train, _ = splits(tmp_path, manifest)
    want = [(r["completion_ids"], r["kl_completion_ids"]) for r in train]
    dataset = training_dataset(uri, manifest)
    for _ in range(2):
        batches = list(dataset.iter_batches(batch_format="pyarrow", batch_size=MICRO))
        rows = pa.concat_tables(batches).to_pylist()
        assert [(r["completion_ids"], r["kl_completion_ids"]) for r in rows] == want
        assert all(batch.num_rows == MICRO for batch in batches)
