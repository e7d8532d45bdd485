"""Files are there whole or not at all, also where the disk is full."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from kto_ray.paths import write_atomic


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_what_was_there_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    target = tmp_path / "folder" / "file"
    write_atomic(str(target), b"before")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(os, call, full)
        write_atomic(str(target), b"after")
    assert [f.name for f in target.parent.iterdir()] == ["file"] and target.read_bytes() == b"before"
    write_atomic(str(target), b"after")
    assert target.read_bytes() == b"after"


def test_the_folder_is_on_the_disk_before_its_file_counts_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        done.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def replaced(source: str, target: str) -> None:
        done.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    write_atomic(str(tmp_path / "folder" / "file"), b"data")
    assert done[0].startswith("file.") and done[1:] == ["replace", "folder", tmp_path.name]
