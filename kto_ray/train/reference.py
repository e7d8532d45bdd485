"""Log-probabilities under the reference: computed once for a micro-batch, kept over epochs, restarts and rounds.

A file holds what one worker of one run looked up. Its folder is named by all that decides the figures beside the tokens
(weights, precision, device, threads, attention, torch), so a micro-batch that recurs is never computed again, and a
changed base model never meets an old figure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from kto_ray.paths import filesystem, join, write_atomic

KEPT_FILES = 8  # newest first; older ones are not read, and are deleted
SCHEMA = pa.schema(
    {"micro_batch": pa.string(), "answers": pa.list_(pa.float32()), "kl_completions": pa.list_(pa.float32())}
)

Scores = tuple[Tensor, Tensor | None]  # (B,) of the answers, (B,) of the KL completions or None


class ReferenceCache:
    """The scores of micro-batches by the hash of their tokens.

    Args:
        uri: the folder of this reference (`fingerprint`).
        name: the file that `save` writes, this worker's own.
    """

    def __init__(self, uri: str, name: str) -> None:
        self.uri, self.name = uri, name
        self.known, self.used = _load(uri, f"{name}.parquet")
        self.unsaved = False

    def get(self, key: str, compute: Callable[[], Scores]) -> Scores:
        """The scores of the micro-batch `key`, on the CPU; computed at its first use."""
        if key not in self.used:
            if key not in self.known:
                answers, kl = compute()
                self.known[key] = (answers.float().cpu(), None if kl is None else kl.float().cpu())
            self.used[key] = self.known[key]
            self.unsaved = True
        return self.used[key]

    def has(self, key: str) -> bool:
        return key in self.used or key in self.known

    def forget(self, key: str) -> None:
        """Have it computed again at its next use."""
        self.used.pop(key, None)
        self.known.pop(key, None)

    def save(self) -> None:
        """Write what this run has used; nothing when that is written already."""
        if not self.unsaved:
            return
        rows = [
            {"micro_batch": key, "answers": answers.tolist(), "kl_completions": None if kl is None else kl.tolist()}
            for key, (answers, kl) in self.used.items()
        ]
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), sink, compression="zstd")
        write_atomic(join(self.uri, f"{self.name}.parquet"), bytes(sink.getvalue()))
        self.unsaved = False


def _load(uri: str, own: str) -> tuple[dict[str, Scores], dict[str, Scores]]:
    """The scores of the newest files, and of them those of the file `own`, which a run that goes on adds to."""
    fs, folder = filesystem(uri)
    if not fs.exists(folder):
        return {}, {}
    files = sorted((f for f in fs.ls(folder, detail=True) if f["name"].endswith(".parquet")), key=_age, reverse=True)
    known: dict[str, Scores] = {}
    used: dict[str, Scores] = {}
    for file in files[:KEPT_FILES]:
        scores = _read(fs.cat_file(file["name"]))
        known |= scores
        if file["name"].endswith(f"/{own}"):
            used = scores
    for file in files[KEPT_FILES:]:
        with suppress(FileNotFoundError):  # another worker of the run was first
            fs.rm(file["name"])
    return known, used


def _read(file: bytes) -> dict[str, Scores]:
    scores: dict[str, Scores] = {}
    for row in pq.read_table(pa.BufferReader(file)).to_pylist():
        kl = row["kl_completions"]
        scores[row["micro_batch"]] = (torch.tensor(row["answers"]), None if kl is None else torch.tensor(kl))
    return scores


def _age(file: dict[str, object]) -> float:
    when = file.get("mtime") or file.get("LastModified")  # local files, S3
    return float(when.timestamp()) if hasattr(when, "timestamp") else float(str(when or 0))


def fingerprint(model: PreTrainedModel, precision: str, threads: int) -> str:
    """16 hex digits of all that decides a score beside the tokens. `model` is the base model, with a frozen adapter
    where that is the reference; what PEFT calls "default" is the policy's and does not count.

    A weight enters by its sum and a sample, so that it costs one pass over the weights and no copy of them. The state
    holds more than the parameters: 4-bit weights mean nothing without their scales. Of sharded weights each worker
    looks at its own part, and all of them name the same whole.
    """
    numerics = f"{torch.__version__} {precision} {threads} {model.config._attn_implementation}"
    digest = hashlib.sha256(numerics.encode())
    sharded = False
    for name, value in model.state_dict().items():
        if ".default." in name:
            continue
        shape = tuple(value.shape)
        if isinstance(value, DTensor):
            sharded = True
            value = value.to_local()
        flat = value.flatten()
        sample = flat[:: max(1, len(flat) // 64)].double().tolist()
        facts = f"{name} {value.device.type} {value.dtype} {shape} {flat.double().sum()!r} {sample}"
        digest.update(facts.encode())
    if sharded:
        parts = [""] * dist.get_world_size()
        dist.all_gather_object(parts, digest.hexdigest())
        digest = hashlib.sha256(" ".join(parts).encode())
    return digest.hexdigest()[:16]
