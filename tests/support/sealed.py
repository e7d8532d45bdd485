"""A snapshot of 24 rows in micro-batches of 4, sealed by hand, and training runs on it."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from kto_ray.config import Config
from kto_ray.model import resolve_model
from kto_ray.records.snapshots import Shard, SnapshotManifest
from kto_ray.records.training import TrainProgress
from kto_ray.train.job import read_progress
from tests.support import rows as handmade
from tests.support.training import train

ROWS, MICRO = 24, 4
STEPS = ROWS // MICRO
CHECKPOINT_STEPS = 2
SCHEMA = pa.schema(
    [
        ("example_id", pa.string()),
        ("user_hash", pa.string()),
        ("source", pa.string()),
        ("label", pa.bool_()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("completion_ids", pa.list_(pa.int32())),
        ("kl_completion_ids", pa.list_(pa.int32())),
    ]
)

train_task = ray.remote(num_cpus=0)(train)


@dataclasses.dataclass(frozen=True)
class Sealed:
    """A snapshot by hand, and the conversations that it was made of."""

    uri: str
    manifest: SnapshotManifest
    conversations: list[dict[str, Any]]


def conversations() -> list[dict[str, Any]]:
    """Desirable answers are short, undesirable ones ramble."""
    pick = random.Random(0)
    topics = ["cats", "bread", "rain", "trains", "music", "stars", "tea", "chess"]
    rows = []
    for i in range(ROWS):
        topic = pick.choice(topics)
        answer = f"I like {topic}." if i % 2 else f"Well, {topic} and {pick.choice(topics)} " + "and so on " * 6
        rows.append(
            {
                "prompt": [{"role": "user", "content": f"What do you say of {topic}, number {i}?"}],
                "completion": [{"role": "assistant", "content": answer}],
                "label": bool(i % 2),
            }
        )
    return rows


def seal(folder: Path) -> Sealed:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(resolve_model(Config().model))
    rows = []
    for i, row in enumerate(conversations()):
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"]
        whole = tokenizer.apply_chat_template(row["prompt"] + row["completion"], return_dict=True)["input_ids"]
        ids = {"prompt_ids": prompt, "completion_ids": whole[len(prompt) :]}
        rows.append({"example_id": f"e{i}", "user_hash": "u", "source": "thumb", "label": row["label"], **ids})
    for i, row in enumerate(rows):
        first = i - i % MICRO
        row["kl_completion_ids"] = rows[i - 1 if i > first else first + MICRO - 1]["completion_ids"]
    shards = []
    for start in (0, 16):  # two shards, so that their order matters
        part = rows[start : start + 16]
        name = f"train-{start:05d}.parquet"
        pq.write_table(pa.Table.from_pylist(part, schema=SCHEMA), folder / name)
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        shards.append(Shard(name, "train", len(part), digest))
    return Sealed(str(folder), manifest(tuple(shards)), conversations())


def manifest(shards: tuple[Shard, ...]) -> SnapshotManifest:
    half = ROWS // 2
    counts: Any = dict(n_desirable=half, n_undesirable=half, n_holdout_desirable=0, n_holdout_undesirable=0)
    sources = {"thumb": {"desirable": half, "undesirable": half}}
    return handmade.manifest(shards=shards, sources=sources, desirable_weight=1.25, micro_batch=MICRO, seed=3, **counts)


def config(home: Path, **kto: Any) -> Config:
    learning = {
        "beta": 0.1,  # what the tests' tolerances are for: losses move by its multiples
        "micro_batch": MICRO,
        "accumulate": 1,
        "learning_rate": 2e-3,
        "warmup_share": 0.0,
        **kto,
    }
    return Config.model_validate(
        {"home": str(home), "kto": learning, "train": {"checkpoint_steps": CHECKPOINT_STEPS, "max_failures": 1}}
    )


def killed_past_its_first_checkpoint(settings: Config) -> TrainProgress:
    """Where the worker of the run "killed" stood when it was killed."""
    deadline = time.monotonic() + 240
    while (progress := read_progress(settings, "killed")) is None or progress.step <= CHECKPOINT_STEPS:
        assert time.monotonic() < deadline, "the run never passed its first checkpoint"
        time.sleep(0.02)
    os.kill(progress.pid, signal.SIGKILL)
    return progress
