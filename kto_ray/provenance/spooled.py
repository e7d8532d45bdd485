"""What of a user or a completion is not in the store yet: a gateway's spool has it, on the disk of this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kto_ray.config.capture import FeedbackSection
from kto_ray.provenance.later import continues, quoting, said
from kto_ray.records.completions import Completion
from kto_ray.records.erasure import Subject
from kto_ray.store import Store, users
from kto_ray.store.spool import DAMAGED, REFUSED, SEGMENT, Entry, Segment, Spool, entry_of, read
from kto_ray.store.together import commit
from kto_ray.store.writer import drain_one

PATIENCE_S = 60.0
POLL_S = 0.2
ELSEWHERE = (
    "spools of gateways on other machines: what waits there while the store is away comes to it later; erase again then"
)


@dataclass(frozen=True, slots=True)
class Concerned:
    """What tells an entry as one that an erasure takes: it is of the user, or on a completion of `ids`, or a later turn
    that quotes the completion that is erased."""

    user: str | None
    ids: frozenset[str]
    erased: Completion | None

    def by(self, entry: Entry) -> bool:
        if self.user is not None and entry.user == self.user:
            return True
        if not isinstance(entry, Completion):
            return entry.completion_id in self.ids
        return entry.id in self.ids or (self.erased is not None and continues(self.erased, entry))

    def again(self, entries: Sequence[Entry]) -> str:
        """How to erase what of these entries is still to come. What others said on the user's answers is found by the
        ids of these then: the answers themselves are gone."""
        others = (entry for entry in entries if self.user is not None and self.by(entry) and entry.user != self.user)
        ids = sorted({str(entry.completion_id) for entry in others if not isinstance(entry, Completion)})
        return "erase again when it has" + "".join(f", and completion {name} by its id" for name in ids)


def bring(store: Store, root: Path, subject: Subject, rules: FeedbackSection) -> tuple[str, ...]:
    """Have the spools under `root` brought to the store, where their entries are erased with the rest; what is set
    aside there for a person is blotted out. Returns what is left, in words.

    A spool whose process is gone is drained here; one that a gateway has, that one drains.
    """
    folders = [folder for folder in sorted(root.iterdir()) if folder.is_dir()] if root.is_dir() else []
    for folder in folders:
        _drain(store, folder, rules)
    concerned = _concerned(store, root, subject)
    deadline = time.monotonic() + PATIENCE_S
    while (waiting := _holding(root, SEGMENT, concerned)) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    unread = [words for folder in folders for words in _blot(folder / REFUSED, concerned)]
    damaged = _holding(root, DAMAGED, concerned)
    return (
        *(
            f"{segment.path} has not come to the store, and {holds} of it: {concerned.again(segment.entries)}"
            for segment, holds in waiting
        ),
        *unread,
        *(f"{segment.path} is damaged, and {holds} of it: look at it and delete it" for segment, holds in damaged),
    )


def retry(store: Store, root: Path, rules: FeedbackSection) -> tuple[int, int]:
    """Give what the store refused from the spools under `root` to it once more; how much it took, which is blotted out
    there, and how much it did not, or cannot be read."""
    taken = left = 0
    for path in sorted(root.glob(f"*/{REFUSED}")):
        for begin, line in _lines(path.read_bytes()):
            entry = entry_of(line)
            if entry is None or isinstance(commit(store, [entry], rules)[0], Exception):
                left += 1
            else:
                taken += 1
                _overwrite(path, begin, len(line))
    return taken, left


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


def _concerned(store: Store, root: Path, subject: Subject) -> Concerned:
    """A user's completions may wait in spools themselves, and be judged there by one who names nobody."""
    with store.read() as tx:
        if subject.kind == "completion":
            ids = frozenset((subject.name, *quoting(tx, subject.name)))
            return Concerned(None, ids, said(tx, subject.name))
        known = users.completions_of(tx, subject)
    spooled = (entry for path in _files(root) for entry in _entries(path))
    own = (entry.id for entry in spooled if isinstance(entry, Completion) and entry.user == subject.name)
    return Concerned(subject.name, frozenset((*known, *own)), None)


def _files(root: Path) -> list[Path]:
    return [path for pattern in (f"*/*{SEGMENT}", f"*/*{DAMAGED}", f"*/{REFUSED}") for path in root.glob(pattern)]


def _entries(path: Path) -> list[Entry]:
    try:
        if path.name != REFUSED:
            return list(read(path).entries)
        lines = _lines(path.read_bytes())
        return [entry for _, line in lines if (entry := entry_of(line)) is not None]
    except FileNotFoundError:  # it has just come to the store
        return []


def _holding(root: Path, suffix: str, concerned: Concerned) -> list[tuple[Segment, str]]:
    """The files that hold some of it, or may, for a part of them cannot be read."""
    found = []
    for path in sorted(root.glob(f"*/*{suffix}")):
        try:
            segment = read(path)
        except FileNotFoundError:  # it has just come to the store
            continue
        if any(map(concerned.by, segment.entries)):
            found.append((segment, "holds some"))
        elif segment.damaged or (segment.torn and suffix == DAMAGED):
            found.append((segment, "may hold some"))
    return found


def _blot(path: Path, concerned: Concerned) -> list[str]:
    """Overwrite lines in their place: the process whose file it is may append at this moment. Returns what cannot be
    read, in words."""
    unread: list[str] = []
    for begin, line in _lines(path.read_bytes()) if path.exists() else ():
        entry = entry_of(line)
        if entry is None:
            words = "cannot be read, and may hold some of it: look at it and delete it"
            unread.append(f"{path}, from byte {begin}: {len(line)} bytes {words}")
        elif concerned.by(entry):
            _overwrite(path, begin, len(line))
    return unread


def _overwrite(path: Path, begin: int, length: int) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.pwrite(fd, b" " * length, begin)
        os.fsync(fd)
    finally:
        os.close(fd)


def _lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    begin = 0
    for line in data.splitlines(keepends=True):
        if line.strip():
            yield begin, line.rstrip(b"\n")
        begin += len(line)
