"""Adapter files: where a version's files are on this machine, checked before anything loads them."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from kto_ray.model import cache_dir
from kto_ray.paths import filesystem, is_local


def fetch(uri: str, max_rank: int, sha256: str) -> str:
    """The local directory of a published adapter, downloaded once if it is remote, and checked.

    Raises:
        ValueError: the files are missing, damaged or unsafe (see check_adapter).
        OSError: the storage cannot be reached.
    """
    from kto_ray.train.export import check_adapter

    if is_local(uri):
        directory = uri.removeprefix("file://")
    else:
        directory = str(cache_dir() / "adapters" / sha256)
        if not os.path.isdir(directory):
            _download(uri, directory)
    check_adapter(directory, max_rank)
    return directory


def _download(uri: str, directory: str) -> None:
    Path(directory).parent.mkdir(parents=True, exist_ok=True)
    fs, path = filesystem(uri)
    staging = tempfile.mkdtemp(dir=Path(directory).parent)
    fs.get(path.rstrip("/") + "/", staging, recursive=True)
    try:
        os.rename(staging, directory)
    except OSError:  # another process was first
        shutil.rmtree(staging)
