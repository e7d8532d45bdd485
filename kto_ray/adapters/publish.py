"""Publishing a trained adapter: exactly its two files under an immutable name, the manifest last, and signed."""

from __future__ import annotations

import importlib.metadata
import json
from typing import Any

from kto_ray.adapters.check import AdapterFiles, known_files, sha256_of
from kto_ray.adapters.files import adapter_name, check_adapter, read_sound
from kto_ray.adapters.signature import signed
from kto_ray.config import Config
from kto_ray.paths import ADAPTER_CONFIG, ADAPTER_MANIFEST, ADAPTER_WEIGHTS, Paths, filesystem, join, write_atomic
from kto_ray.records.adapters import AdapterVersion
from kto_ray.records.snapshots import SnapshotManifest

LIBRARIES = ("torch", "transformers", "trl", "peft", "ray")
# Those that shape an adapter; but where a training is shown shapes nothing, and may hold a password.
CONFIG_SECTIONS = {"model", "data", "kto", "train"}


def publish(
    config: Config,
    adapter_dir: str,
    number: int,
    snapshot: SnapshotManifest,
    champion: AdapterVersion | None,
    created_at: float,
) -> AdapterVersion:
    """Publish the two adapter files of `adapter_dir` under their immutable name, the manifest last.

    `champion` is the version that this one is meant to follow, None where that is the base model; `created_at` is in
    seconds since the epoch.
    Publishing the same weights under the same number again returns what is there, if it is what was published.

    Raises:
        ValueError: the files are missing, damaged, not finite, or more than the servers can load.
    """
    files = read_sound(adapter_dir, config.serve.max_lora_rank)
    sha256 = sha256_of(files.weights)
    name = adapter_name(config.model.served_name, number, sha256)
    uri = Paths(config.home).adapter(name)
    if (there := _published(config, uri, files)) is not None:
        return there
    manifest: dict[str, Any] = {
        "name": name,
        "number": number,
        "created_at": created_at,
        "files": {
            ADAPTER_CONFIG: {"sha256": sha256_of(files.config), "bytes": len(files.config)},
            ADAPTER_WEIGHTS: {"sha256": sha256, "bytes": len(files.weights)},
        },
        "parent": champion.name if champion else None,
        "reference": champion.name if champion and config.kto.reference == "champion" else config.base_name,
        "snapshot": snapshot.id,
        "seed": snapshot.seed,
        "rank": files.rank,
        "config": config.model_dump(mode="json", include=CONFIG_SECTIONS, exclude={"train": {"mlflow_uri"}}),
        "versions": installed_versions(),
    }
    manifest = signed(manifest, config.adapters.signing_keys)
    write_atomic(join(uri, ADAPTER_CONFIG), files.config)
    write_atomic(join(uri, ADAPTER_WEIGHTS), files.weights)
    write_atomic(join(uri, ADAPTER_MANIFEST), json.dumps(manifest, indent=2).encode())
    return _version(uri, manifest)


def sign(config: Config, version: AdapterVersion) -> None:
    """Sign a version that was published before there was a key, or under one that is to go: what the store knows of it,
    whatever lies beside its files.

    Raises:
        ValueError: there is no key, or its files are not those that the store knows.
    """
    if not config.adapters.signing_keys:
        raise ValueError(
            f"adapters.signing_keys is empty, so that nothing can sign {version.name}; make a key with "
            "`openssl rand -hex 32`, and give it as KTO_RAY__ADAPTERS__SIGNING_KEYS"
        )
    manifest = signed(version.manifest, config.adapters.signing_keys)
    known_files(version)
    write_atomic(join(version.uri, ADAPTER_MANIFEST), json.dumps(manifest, indent=2).encode())
    check_adapter(version, config.serve.max_lora_rank, config.adapters.signing_keys)


def as_trained(config: Config, version: AdapterVersion) -> Config:
    """The settings that an adapter was made with, its snapshot's included; all others are `config`'s."""
    then = version.manifest["config"]
    train = {**then["train"], "mlflow_uri": config.train.mlflow_uri}
    return Config.model_validate({**config.model_dump(), **then, "train": train})


def installed_versions() -> dict[str, str]:
    """Of the libraries that shape an adapter."""
    return {library: importlib.metadata.version(library) for library in LIBRARIES}


def _published(config: Config, uri: str, files: AdapterFiles) -> AdapterVersion | None:
    """What is there already, from a process that was killed before it told; not what somebody else put there."""
    fs, path = filesystem(join(uri, ADAPTER_MANIFEST))
    if not fs.exists(path):
        return None
    try:
        there = _version(uri, json.loads(fs.cat_file(path)))
        check_adapter(there, config.serve.max_lora_rank, config.adapters.signing_keys)
        known = known_files(there)
    except (KeyError, TypeError, ValueError):
        return None
    same = (known[ADAPTER_CONFIG].sha256, known[ADAPTER_WEIGHTS].sha256)
    return there if same == (sha256_of(files.config), sha256_of(files.weights)) else None


def _version(uri: str, manifest: dict[str, Any]) -> AdapterVersion:
    return AdapterVersion(
        name=manifest["name"],
        number=manifest["number"],
        created_at=manifest["created_at"],
        uri=uri,
        sha256=manifest["files"][ADAPTER_WEIGHTS]["sha256"],
        snapshot=manifest["snapshot"],
        parent=manifest["parent"],
        reference=manifest["reference"],
        rank=manifest["rank"],
        manifest=manifest,
    )
