"""What of a user or a completion is not in the store yet: a gateway's spool has it, on the disk of this machine."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kto_ray.config.capture import FeedbackSection
from kto_ray.records.completions import Completion
from kto_ray.records.erasure import Subject
from kto_ray.store import Store
from kto_ray.store.spool import DAMAGED, REFUSED, SEGMENT, Entry, Spool, read
from kto_ray.store.writer import drain_one

PATIENCE_S = 60.0
POLL_S = 0.2


def bring(store: Store, root: Path, subject: Subject, rules: FeedbackSection) -> tuple[str, ...]:
    """Have the spools under `root` brought to the store, where their entries are erased with the rest; what is set
    aside there for a person is blotted out. Returns what is left, in words.

    A spool whose process is gone is drained here; one that a gateway has, that one drains.
    """
    if not root.is_dir():
        return ()
    folders = [folder for folder in sorted(root.iterdir()) if folder.is_dir()]
    unread: list[str] = []
    for folder in folders:
        _drain(store, folder, rules)
        unread += _blot(folder / REFUSED, subject)
    deadline = time.monotonic() + PATIENCE_S
    while (waiting := _holding(root, SEGMENT, subject)) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    said = [f"{path} has not come to the store, and holds some of it: erase again when it has" for path in waiting]
    damaged = _holding(root, DAMAGED, subject)
    return (*said, *unread, *(f"{path} is damaged, and holds some of it: look at it and delete it" for path in damaged))


def _drain(store: Store, folder: Path, rules: FeedbackSection) -> None:
    try:
        spool = Spool(folder)
    except BlockingIOError:  # a gateway has it
        return
    try:
        while drain_one(store, spool, rules):
            continue
    finally:
        spool.close()


def _holding(root: Path, suffix: str, subject: Subject) -> list[Path]:
    def holds(path: Path) -> bool:
        try:
            return any(_concerns(entry, subject) for entry in read(path).entries)
        except FileNotFoundError:  # it has just come to the store
            return False

    return [path for path in sorted(root.glob(f"*/*{suffix}")) if holds(path)]


def _concerns(entry: Entry, subject: Subject) -> bool:
    if subject.kind == "user":
        return entry.user == subject.name
    return subject.name == (entry.id if isinstance(entry, Completion) else entry.completion_id)


def _blot(path: Path, subject: Subject) -> list[str]:
    """Overwrite lines in their place: the process whose file it is may append at this moment. Returns what cannot be
    read, in words."""
    unread: list[str] = []
    if not path.exists():
        return unread
    with path.open("r+b") as file:
        for begin, line in _lines(file.read()):
            try:
                told: dict[str, Any] = json.loads(line)
            except ValueError:
                words = "cannot be read, and may hold some of it: look at it and delete it"
                unread.append(f"{path}, from byte {begin}: {len(line)} bytes {words}")
                continue
            names = ("user",) if subject.kind == "user" else ("id", "completion_id", "named_completion")
            if subject.name in (told.get(name) for name in names):
                file.seek(begin)
                file.write(b" " * len(line))
        file.flush()
        os.fsync(file.fileno())
    return unread


def _lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    begin = 0
    for line in data.splitlines(keepends=True):
        if line.strip():
            yield begin, line.rstrip(b"\n")
        begin += len(line)
