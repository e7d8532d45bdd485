"""Rows of a benchmark: ordered and paired as a snapshot seals them, and fed to a trainer from memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from kto_ray.config import Config
from kto_ray.data.balance import interleave, rotate
from kto_ray.data.tokens import encode, turn_of
from kto_ray.records.training import TrainJob

Row = dict[str, Any]


class Memory:
    """A table in memory, read as RowBatches reads Ray Data."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def iter_batches(self, *, batch_size: int, **how: Any) -> Iterator[pa.Table]:
        for start in range(0, self.table.num_rows, batch_size):
            yield self.table.slice(start, batch_size)


def as_said(prepared: Any, tokenizer: Any) -> Any:
    """A dataset that TRL has tokenized, without what the template puts behind the end of a turn: no engine says that,
    and a snapshot has none of it."""
    end = turn_of(tokenizer).end

    def cut(row: Row) -> Row:
        return {name: _to_its_end(row[name], end) for name in ("completion_ids", "KL_completion_ids") if name in row}

    return prepared.map(cut)


def _to_its_end(ids: list[int], end: tuple[int, ...]) -> list[int]:
    return ids[: max((i for i, token in enumerate(ids) if token in end), default=len(ids) - 1) + 1]


def sealed(config: Config, rows: Sequence[Row], tokenizer: Any) -> tuple[list[Row], pa.Table]:
    """The rows in training order: as text, for TRL, and as paired ids, for us (what a snapshot's shards hold).

    kto.micro_batch, data.max_length and data.seed decide, as in a snapshot.
    """
    max_length, micro_batch = config.data.max_length, config.kto.micro_batch
    encoded = [encode(tokenizer, row["prompt"], row["completion"][0]["content"]) for row in rows]
    usable = [(row, ids) for row, ids in zip(rows, encoded, strict=True) if ids and len(ids[0]) < max_length]
    order = interleave(
        np.array([row["label"] for row, _ in usable]),
        np.unique([str(ids[0]) for _, ids in usable], return_inverse=True)[1],
        np.array([min(len(ids[0]) + len(ids[1]), max_length) for _, ids in usable]),
        micro_batch,
        config.data.seed,
    )
    ordered = [usable[i] for i in order]
    paired = []
    for (row, (prompt, answer)), other in zip(ordered, rotate(len(ordered), micro_batch), strict=True):
        room = max_length - len(prompt)
        kl_answer = ordered[other][1][1][:room]
        ids = {"prompt_ids": prompt, "completion_ids": answer[:room], "kl_completion_ids": kl_answer}
        paired.append({"label": row["label"], **ids})
    return [row for row, _ in ordered], pa.Table.from_pylist(paired)


def job_of(config: Config, rows: int, weights: tuple[float, float], home: str) -> TrainJob:
    """A training job of one process, with nothing kept beyond `home`; `weights` of desirable and undesirable rows."""
    plain = dict(device="cpu", step="exact", quantize="none", sharding="none", gradient_checkpointing=False)
    return TrainJob(
        model=config.model,
        kto=config.kto,
        train=config.train.model_copy(update={**plain, "checkpoint_steps": 10**6}),
        dtype=config.train.dtype,
        rows=rows,
        micro_batch=config.kto.micro_batch,
        desirable_weight=weights[0],
        undesirable_weight=weights[1],
        max_length=config.data.max_length,
        seed=config.data.seed,
        home=home,
        run="bench",
    )
