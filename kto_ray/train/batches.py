"""A worker's micro-batches: rows of the snapshot in its order, as tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import torch
from ray.data import DataIterator
from torch import Tensor
from torch.utils.data import IterableDataset

Row = dict[str, Any]  # label, prompt_ids, completion_ids and KL_completion_ids, as TRL names them
TRL_COLUMNS = {"kl_completion_ids": "KL_completion_ids"}  # ours -> TRL's, where they differ


class RowBatches(IterableDataset[list[dict[str, Any]]]):
    """This worker's micro-batches of rows, in the snapshot's order.

    Every worker reads the whole stream and takes its slice: of each `micro_batch * world` rows, worker k takes the k-th
    `micro_batch`. So a micro-batch is the one that the snapshot paired, whatever the number of workers, and no row is
    dropped to make shards equal (which `streaming_split` over workers does). A last, partial group is split evenly;
    fewer rows than workers there cannot be split and are left out.
    """

    def __init__(self, stream: DataIterator, rows: int, micro_batch: int, rank: int, world: int) -> None:
        self.stream = stream
        self.rows = rows
        self.group = micro_batch * world
        self.rank = rank
        self.world = world

    def __len__(self) -> int:
        full, rest = divmod(self.rows, self.group)
        return full + (rest >= self.world)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        groups = iter(self.stream.iter_batches(batch_size=self.group, batch_format="pyarrow", prefetch_batches=2))
        for index in range(len(self)):
            expected = min(self.group, self.rows - index * self.group)
            table: pa.Table | None = next(groups, None)
            if table is None or table.num_rows != expected:
                got = index * self.group + (0 if table is None else table.num_rows)
                raise RuntimeError(
                    f"the snapshot's manifest promises {self.rows} training rows, its shards held {got}: "
                    "the snapshot is damaged; seal a new one"
                )
            low = self.rank * expected // self.world
            high = (self.rank + 1) * expected // self.world
            names = [TRL_COLUMNS.get(name, name) for name in table.column_names]
            yield table.rename_columns(names).slice(low, high - low).to_pylist()


def collate(rows: Sequence[Row], with_kl: bool) -> dict[str, Any]:
    """One micro-batch for `step.score`, and the hash of its tokens under `key`.

    Returns:
        input_ids (B, T), prompt_len (B,), length (B,), label (B,) and, with the KL term, kl_ids (B, K), kl_len (B,).
        Ids are padded on the right with 0; lengths say what is real.
    """
    whole = [row["prompt_ids"] + row["completion_ids"] for row in rows]
    batch = {
        "input_ids": _padded(whole),
        "prompt_len": torch.tensor([len(row["prompt_ids"]) for row in rows]),
        "length": torch.tensor([len(ids) for ids in whole]),
    }
    if with_kl:
        batch["kl_ids"] = _padded([row["KL_completion_ids"] for row in rows])
        batch["kl_len"] = torch.tensor([len(row["KL_completion_ids"]) for row in rows])
    digest = hashlib.sha256()
    for name, tensor in batch.items():
        digest.update(f"{name}{tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    return {**batch, "label": torch.tensor([row["label"] for row in rows]), "key": digest.hexdigest()[:32]}


def _padded(ids: Sequence[Sequence[int]]) -> Tensor:
    width = max(map(len, ids))
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in ids])
