"""What is refused of an adapter, before anything loads it. Pure: bytes in, words out.

Only safetensors: a pickle runs code where it is loaded. Whose bytes they are comes first, by hash and signature, and
what they say second: nothing is parsed that a stranger wrote.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError
from safetensors import SafetensorError, deserialize

from kto_ray.adapters.shapes import A, layers_of, refuse_senseless
from kto_ray.adapters.signature import SIGNATURE, believed
from kto_ray.config.learning import MAX_ALPHA
from kto_ray.paths import ADAPTER_CONFIG, ADAPTER_MANIFEST, ADAPTER_WEIGHTS
from kto_ray.records.adapters import AdapterVersion

M = TypeVar("M", bound=BaseModel)
Alpha = Annotated[float, Field(gt=0, le=MAX_ALPHA, allow_inf_nan=False, strict=True)]

FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)
# Of the JSON at the head of safetensors: 200 bytes tell a tensor, so this is more than 100,000 of them
MAX_HEADER = 32 * 2**20
MAX_JSON = 2**20  # of config and manifest

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


class Named(BaseModel):
    """A file as a manifest names it."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class _Settings(BaseModel):
    """What is relied on of PEFT's adapter_config.json."""

    peft_type: Literal["LORA"]
    r: int = Field(ge=1, strict=True)
    lora_alpha: Alpha
    rank_pattern: dict[str, Annotated[int, Field(ge=1, strict=True)]] | None = None
    alpha_pattern: dict[str, Alpha] | None = None
    use_dora: bool = Field(False, strict=True)
    target_modules: str | list[str] | None = None
    modules_to_save: list[str] | None = None


class _Manifest(BaseModel):
    files: dict[str, Named]


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def known_files(version: AdapterVersion) -> dict[str, Named]:
    """An adapter's two files as the store knows them, from when it was published.

    Raises:
        ValueError: it does not know them.
    """
    try:
        named = _Manifest.model_validate(version.manifest).files
    except ValidationError:
        named = {}
    if set(named) != set(FILES) or named[ADAPTER_WEIGHTS].sha256 != version.sha256:
        raise ValueError(
            f"adapter {version.name!r}: its row in the store does not tell the SHA-256 of {' and '.join(FILES)}, so "
            "that nothing could be compared with it; publish it anew"
        )
    return named


def published(
    uri: str, version: AdapterVersion, files: Mapping[str, bytes], max_rank: int, keys: Sequence[str]
) -> AdapterFiles:
    """Make sure that these are a published adapter's files, and loadable.

    Args:
        uri: where they were read, for the words.
        files: config, weights and manifest by their names.
        keys: any of which may have signed the manifest; where there are none, nothing need be signed.

    Raises:
        ValueError: something is not as it was published, or see `sound`. The message names the adapter, the fault and
            the fix.
    """
    known = known_files(version)
    manifest = _manifest(uri, files[ADAPTER_MANIFEST])
    named = _parsed(_Manifest, uri, ADAPTER_MANIFEST, manifest).files
    if set(named) != set(FILES):
        strange = ", ".join(sorted(set(named) - set(FILES))) or "nothing else"
        raise ValueError(
            f"adapter {uri!r}: {ADAPTER_MANIFEST} is damaged: it must name {' and '.join(FILES)}, and names {strange}; "
            "export it again"
        )
    if keys and not believed(manifest, keys):
        what = "is not signed" if SIGNATURE not in manifest else "was signed by another key, or changed since"
        raise ValueError(
            f"adapter {uri!r}: {ADAPTER_MANIFEST} {what}, and adapters.signing_keys says who may sign; if you know it "
            f"to be yours, `kto-ray adapters sign {version.name}` signs what the store knows it by"
        )
    for name in FILES:
        if named[name] != known[name]:
            raise ValueError(
                f"adapter {uri!r}: {ADAPTER_MANIFEST} was changed: it tells SHA-256 {named[name].sha256} of {name}, "
                f"the store knows it by {known[name].sha256}: a name never points at other weights; publish these "
                "under a new version"
            )
        if sha256_of(files[name]) != known[name].sha256:
            raise ValueError(
                f"adapter {uri!r}: {name} has SHA-256 {sha256_of(files[name])}, its manifest says "
                f"{known[name].sha256}: the file was changed after it was published; "
                "export it again under a new version"
            )
    return sound(uri, files[ADAPTER_CONFIG], files[ADAPTER_WEIGHTS], max_rank)


def sound(uri: str, config: bytes, weights: bytes, max_rank: int) -> AdapterFiles:
    """Make sure that config and weights are a LoRA adapter that the engine can load.

    Raises:
        ValueError: one is no JSON or no safetensors, holds NaN or Inf, has a rank above `max_rank`, or brings more than
            low ranks; or the two do not fit together.
    """
    settings = _parsed(_Settings, uri, ADAPTER_CONFIG, _json(uri, ADAPTER_CONFIG, config))
    tensors = _tensors(uri, weights)
    _refuse_whole_modules(uri, settings, tensors)
    layers = layers_of(uri, tensors)
    ranks = {settings.r, *(settings.rank_pattern or {}).values()}
    rank = max(ranks | {parts[A][0] for parts in layers.values() if A in parts})
    if rank > max_rank:
        raise ValueError(
            f"adapter {uri!r} has rank {rank}, the servers load at most {max_rank} (serve.max_lora_rank): "
            "raise that, or train with a lower kto.rank"
        )
    refuse_senseless(uri, layers, ranks, settings.use_dora)
    return AdapterFiles(config=config, weights=weights, rank=rank)


def _manifest(uri: str, data: bytes) -> dict[str, Any]:
    manifest = _json(uri, ADAPTER_MANIFEST, data)
    return manifest if isinstance(manifest, dict) else {}


def _json(uri: str, name: str, data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:  # the second of brackets by the thousand
        raise ValueError(f"adapter {uri!r}: {name} is damaged: it is no JSON ({error}); export it again") from None


def _parsed(model: type[M], uri: str, name: str, told: Any) -> M:
    try:
        return model.model_validate(told)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ValueError(f"adapter {uri!r}: {name} is damaged: {where}: {first['msg']}; export it again") from None


def _tensors(uri: str, weights: bytes) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors, after looking at every value."""
    _refuse_other_formats(uri, weights)
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


def _refuse_other_formats(uri: str, weights: bytes) -> None:
    """A safetensors file begins with the length of its header (8 bytes, little-endian), and its header with "{"."""
    if weights[8:9] != b"{" and weights[:1] in (b"P", b"\x80"):
        what = "a zip archive, as torch.save writes" if weights.startswith(b"PK") else "a pickle"
        raise ValueError(
            f"adapter {uri!r}: {ADAPTER_WEIGHTS} is {what}, and no safetensors: a pickle runs code when it is loaded; "
            "save the adapter by save_pretrained"
        )
    header = int.from_bytes(weights[:8], "little")
    if len(weights) >= 8 and header > MAX_HEADER:
        raise ValueError(
            f"adapter {uri!r}: {ADAPTER_WEIGHTS} tells a header of {header} bytes, and {MAX_HEADER} are the most that "
            "is read: it is damaged, or made to exhaust memory; export it again"
        )


def _finite(data: bytes, dtype: str) -> bool:
    storage, exponent = FLOATS[dtype]
    bits: NDArray[Any] = np.frombuffer(data, dtype=storage)
    return not bool(np.any((bits & exponent) == exponent))


def _refuse_whole_modules(uri: str, settings: _Settings, tensors: dict[str, tuple[int, ...]]) -> None:
    targets = settings.target_modules or []
    named = [*([targets] if isinstance(targets, str) else targets), *(settings.modules_to_save or [])]
    guilty = sorted({name for name in [*named, *tensors] if "lm_head" in name or "embed_tokens" in name})
    if guilty:
        raise ValueError(
            f"adapter {uri!r} changes {guilty[0]}: KTO's fused head never trains an adapter there and engines do not "
            "load it; take lm_head and embed_tokens out of the target modules and train again"
        )
    whole = settings.modules_to_save or [name for name in tensors if ".lora_" not in name]
    if whole:
        raise ValueError(
            f"adapter {uri!r} brings {whole[0]} whole (modules_to_save), which replaces the base model's own: engines "
            "load low ranks only; train again without modules_to_save"
        )
