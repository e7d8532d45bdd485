"""Adapter files: published under an immutable name, checked before anything loads them. Only safetensors: a pickle runs
code where it is loaded."""

from __future__ import annotations

import hashlib
import os
import posixpath
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError
from safetensors import SafetensorError, deserialize

from kto_ray.model import cache_dir
from kto_ray.paths import ADAPTER_CONFIG, ADAPTER_MANIFEST, ADAPTER_WEIGHTS, filesystem, is_local, join

M = TypeVar("M", bound=BaseModel)

PICKLES = (".bin", ".pt", ".pth", ".pkl")

# Little-endian storage of each float type that PEFT writes, and the exponent bits that are all set in NaN and Inf.
FLOATS: dict[str, tuple[str, int]] = {
    "BF16": ("<u2", 0x7F80),
    "F16": ("<u2", 0x7C00),
    "F32": ("<u4", 0x7F800000),
}


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """An adapter's two files, read and found sound. `rank` is the highest of any layer."""

    config: bytes
    weights: bytes
    rank: int


class _Settings(BaseModel):
    """What is relied on of PEFT's adapter_config.json."""

    peft_type: Literal["LORA"]
    r: int = Field(ge=1, strict=True)
    rank_pattern: dict[str, int] | None = None
    target_modules: str | list[str] | None = None
    modules_to_save: list[str] | None = None


class _File(BaseModel):
    sha256: str


class _Manifest(BaseModel):
    files: dict[str, _File]


def adapter_name(served_name: str, number: int, sha256: str) -> str:
    """The immutable name under which an adapter is served: `policy@v7-3fa9c1`. `sha256` is that of the weights."""
    return f"{served_name}@v{number}-{sha256[:6]}"


def fetch(uri: str, max_rank: int, sha256: str) -> str:
    """The local directory of a published adapter, downloaded once if it is remote, and checked.

    Raises:
        ValueError: the files are missing, damaged or unsafe (see check_adapter).
        OSError: the storage cannot be reached.
    """
    if is_local(uri):
        directory = uri.removeprefix("file://")
        check_adapter(directory, max_rank, sha256)
        return directory
    directory = str(cache_dir() / "adapters" / sha256)
    if os.path.isdir(directory):
        try:
            check_adapter(directory, max_rank, sha256)
            return directory
        except ValueError:  # the copy may be what is damaged
            shutil.rmtree(directory)
    _download(uri, directory)
    check_adapter(directory, max_rank, sha256)
    return directory


def check_adapter(uri: str, max_rank: int, sha256: str) -> None:
    """Make sure that a published adapter is whole and loadable, before any engine sees it.

    Args:
        sha256: of the weights, as the store knows it: manifest and weights may have been exchanged together.

    Raises:
        ValueError: a file is missing, damaged, a pickle, not the one that the manifest or the store names, holds NaN or
            Inf, has a rank above `max_rank` or trains the LM head. The message names the adapter, the fault and the
            fix.
    """
    files = read_sound(uri, max_rank)
    fs, path = filesystem(join(uri, ADAPTER_MANIFEST))
    if not fs.exists(path):
        raise ValueError(
            f"adapter {uri!r} has no {ADAPTER_MANIFEST}, which is written last: it was never fully published; "
            "export it again"
        )
    recorded = _parsed(_Manifest, uri, ADAPTER_MANIFEST, fs.cat_file(path)).files
    for name, data in ((ADAPTER_CONFIG, files.config), (ADAPTER_WEIGHTS, files.weights)):
        told = recorded[name].sha256 if name in recorded else "nothing of it"
        if told != sha256_of(data):
            raise ValueError(
                f"adapter {uri!r}: {name} has SHA-256 {sha256_of(data)}, its manifest says {told}: "
                "the file was changed after it was published; export it again under a new version"
            )
    if sha256_of(files.weights) != sha256:
        raise ValueError(
            f"adapter {uri!r} holds weights of SHA-256 {sha256_of(files.weights)}, the store knows it by {sha256}: "
            "a name never points at other weights; publish these under a new version"
        )


def read_sound(uri: str, max_rank: int) -> AdapterFiles:
    config, weights = _read_files(uri)
    settings = _parsed(_Settings, uri, ADAPTER_CONFIG, config)
    tensors = _tensors(uri, weights)
    _refuse_lm_head(uri, settings, tensors)
    rank = max([settings.r, *(settings.rank_pattern or {}).values(), *_lora_ranks(tensors)])
    if rank > max_rank:
        raise ValueError(
            f"adapter {uri!r} has rank {rank}, the servers load at most {max_rank} (serve.max_lora_rank): "
            "raise that, or train with a lower kto.rank"
        )
    return AdapterFiles(config=config, weights=weights, rank=rank)


def _parsed(model: type[M], uri: str, name: str, data: bytes) -> M:
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ValueError(f"adapter {uri!r}: {name} is damaged: {where}: {first['msg']}; export it again") from None


def _read_files(uri: str) -> tuple[bytes, bytes]:
    fs, path = filesystem(uri)
    if not fs.isdir(path):
        raise ValueError(f"adapter {uri!r} does not exist; export it first")
    names = {posixpath.basename(str(file)) for file in fs.ls(path, detail=False)}
    pickles = sorted(name for name in names if name.startswith("adapter_model") and name.endswith(PICKLES))
    if pickles:
        raise ValueError(
            f"adapter {uri!r} holds {', '.join(pickles)}: a pickle runs code when it is loaded, and engines fall back "
            f"to it; save the adapter as {ADAPTER_WEIGHTS} (save_pretrained does) and delete the pickle"
        )
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if name not in names:
            held = ", ".join(sorted(names)) or "nothing"
            raise ValueError(f"adapter {uri!r} has no {name} (it holds: {held}); export it again")
    return bytes(fs.cat_file(f"{path}/{ADAPTER_CONFIG}")), bytes(fs.cat_file(f"{path}/{ADAPTER_WEIGHTS}"))


def _tensors(uri: str, weights: bytes) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors, after looking at every value."""
    try:
        entries = deserialize(weights)  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise ValueError(
            f"adapter {uri!r}: {ADAPTER_WEIGHTS} ({len(weights)} bytes) is truncated or damaged: {error}; "
            "export it again"
        ) from None
    if not entries:
        raise ValueError(f"adapter {uri!r}: {ADAPTER_WEIGHTS} holds no tensor; export it again")
    for name, entry in entries:
        if entry["dtype"] not in FLOATS:
            raise ValueError(
                f"adapter {uri!r}: tensor {name} has type {entry['dtype']}; save it as one of {', '.join(FLOATS)}"
            )
        if not _finite(entry["data"], entry["dtype"]):
            raise ValueError(
                f"adapter {uri!r}: tensor {name} holds NaN or Inf: the training diverged; "
                "train again with a lower kto.learning_rate"
            )
    return {name: tuple(entry["shape"]) for name, entry in entries}


def _finite(data: bytes, dtype: str) -> bool:
    storage, exponent = FLOATS[dtype]
    bits: NDArray[Any] = np.frombuffer(data, dtype=storage)
    return not bool(np.any((bits & exponent) == exponent))


def _lora_ranks(tensors: dict[str, tuple[int, ...]]) -> list[int]:
    """lora_A is (rank, in), lora_B (out, rank)."""
    return [shape[0] for name, shape in tensors.items() if ".lora_A." in name]


def _refuse_lm_head(uri: str, settings: _Settings, tensors: dict[str, tuple[int, ...]]) -> None:
    targets = settings.target_modules or []
    named = [*([targets] if isinstance(targets, str) else targets), *(settings.modules_to_save or [])]
    guilty = sorted({name for name in [*named, *tensors] if "lm_head" in name or "embed_tokens" in name})
    if guilty:
        raise ValueError(
            f"adapter {uri!r} changes {guilty[0]}: KTO's fused head never trains an adapter there and engines do not "
            "load it; take lm_head and embed_tokens out of the target modules and train again"
        )


def _download(uri: str, directory: str) -> None:
    Path(directory).parent.mkdir(parents=True, exist_ok=True)
    fs, path = filesystem(uri)
    staging = tempfile.mkdtemp(dir=Path(directory).parent)
    try:
        fs.get(path.rstrip("/") + "/", staging, recursive=True)
        with suppress(OSError):  # another process was first
            os.rename(staging, directory)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
