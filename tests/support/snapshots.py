"""Snapshots of made-up thumbs, frozen by real Ray Data, and what they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kto_ray.config import Config
from kto_ray.data.snapshot import freeze, read_split
from kto_ray.paths import Paths
from kto_ray.records.examples import Example

MICRO = 4


def example(i: int, user: str, desirable: bool, question: str = "", answer: str = "", source: str = "thumb") -> Example:
    return Example(
        id=f"{i:032x}",
        completion_id=f"c{i}",
        user=user,
        messages=({"role": "user", "content": question or f"What is {i} plus one?"},),
        answer=answer or f"It is {i + 1}, naturally.",
        desirable=desirable,
        source=source,
        adapter="policy@base",
        created_at=1000.0 + i,
    )


def thumbs(n: int = 90, users: int = 30) -> list[Example]:
    """Two thirds desirable, three rows a user, one of them undesirable."""
    return [example(i, f"user{i % users}", (i + i // users) % 3 != 0) for i in range(n)]


def config(home: Path, **data: Any) -> Config:
    return Config.model_validate(
        {
            "home": str(home),
            "kto": {"micro_batch": MICRO},
            "data": {"max_length": 64, "max_user_share": 0.5, "rows_per_shard": 30, **data},
        }
    )


def take(
    home: Path, model_path: str, examples: list[Example], blocks: int = 2, dropped: Any = None, **data: Any
) -> Any:
    ranges = [(start, blocks) for start in range(blocks)] + [(len(examples), 1)]  # the last is empty

    def read(key: tuple[int, int]) -> list[Example]:
        assert isinstance(key, tuple)
        return examples[key[0] :: key[1]]

    return freeze(config(home, **data), model_path, ranges, read, dropped or {}, 2000.0)


def files(home: Path, manifest: Any) -> dict[str, bytes]:
    folder = Path(Paths(str(home)).snapshot(manifest.id))
    return {f.name: f.read_bytes() for f in folder.iterdir() if f.name != "manifest.json"}


def splits(home: Path, manifest: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    uri = Paths(str(home)).snapshot(manifest.id)
    return tuple(read_split(uri, manifest, s).to_pylist() for s in ("train", "holdout"))
