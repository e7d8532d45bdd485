"""The log while the store is away: completions and events in files of a folder, durable when `append` returns.

A segment is a file of entries: the payload's length, its CRC-32 and that of these two (little-endian, 4 bytes each),
then the payload, JSON. Every start begins a new segment, so nothing is appended behind a torn tail. A segment goes once
the store has all of it; the store leaves what it knows already as it is, so a kill between the two doubles nothing.
"""

from __future__ import annotations

import base64
import fcntl
import json
import logging
import os
import struct
import threading
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kto_ray.records.completions import Completion
from kto_ray.records.feedback import Feedback
from kto_ray.store.mapping import columns_of, completion_of, feedback_columns, feedback_of

log = logging.getLogger(__name__)

Entry = Completion | Feedback

HEADER, CHECK = struct.Struct("<II"), struct.Struct("<I")
HEAD = HEADER.size + CHECK.size
SEGMENT_BYTES = 16 * 2**20  # a segment that is larger gets no more
SEGMENT, DAMAGED, REFUSED, LOCK = ".log", ".damaged", "refused.jsonl", "lock"


class SpoolFailed(RuntimeError):
    """The disk did not take it: nothing was recorded."""


@dataclass(frozen=True, slots=True)
class Segment:
    """What a file holds. `damaged`: bytes in its middle that are not what was written, or that a program wrote which is
    newer than this one; `torn`: bytes at its end of what was never acknowledged, for the machine stopped while it was
    written."""

    path: Path
    entries: tuple[Entry, ...]
    damaged: int = 0
    torn: int = 0


class Spool:
    """A folder of segments, for one process alone: it holds the folder's lock until it ends. Safe for threads."""

    def __init__(self, folder: Path) -> None:
        """Raises:
        BlockingIOError: another process has the folder.
        OSError: it cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder = folder
        self._lock_fd = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._sizes = {path: len(read(path).entries) for path in sorted(folder.glob(f"*{SEGMENT}"))}
            named = (*self._sizes, *folder.glob(f"*{DAMAGED}"))  # which another of the same number would overwrite
            self._next = 1 + max((int(path.stem) for path in named), default=0)
        except BaseException:
            os.close(self._lock_fd)
            raise
        self._mutex = threading.Lock()
        self._file: tuple[int, Path] | None = None  # the segment that is written

    @property
    def depth(self) -> int:
        """Entries that the store does not have yet."""
        with self._mutex:
            return sum(self._sizes.values())

    @property
    def empty(self) -> bool:
        with self._mutex:
            return not self._sizes

    def append(self, entries: Sequence[Entry]) -> None:
        """Raises:
        SpoolFailed: the disk is full, read-only or broken; none of the entries is recorded.
        """
        data = b"".join(map(_framed, entries))
        with self._mutex:
            try:
                fd, path = self._file or self._begin()
                self._write(fd, data)
            except OSError as error:
                raise SpoolFailed(f"the spool {self.folder} takes nothing: {error}; nothing was recorded") from error
            self._sizes[path] += len(entries)
            if os.lseek(fd, 0, os.SEEK_CUR) > SEGMENT_BYTES:
                self._end()

    def oldest(self) -> Segment | None:
        """The segment that the store should have next; nothing is appended to it any more."""
        with self._mutex:
            path = next(iter(self._sizes), None)
            if path is None:
                return None
            if self._file is not None and self._file[1] == path:
                self._end()
        return read(path)

    def drop(self, segment: Segment) -> None:
        """The store has a segment's entries: it goes. One that is damaged is kept beside, for a person to look at."""
        if segment.damaged:
            segment.path.rename(segment.path.with_suffix(DAMAGED))
        else:
            segment.path.unlink(missing_ok=True)
        with self._mutex:
            del self._sizes[segment.path]
        _sync(self.folder)  # after all else: should it fail, a crash may bring back what the store has, and knows

    def refuse(self, entry: Entry, why: str) -> None:
        """Set aside an entry that the store will never take, so that those behind it can go on."""
        log.error("the store refuses %s from the spool: %s; it is kept in %s", entry.id, why, self.folder / REFUSED)
        line = json.dumps({"why": why, **_plain(entry)}).encode() + b"\n"
        fd = os.open(self.folder / REFUSED, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            end = os.lseek(fd, 0, os.SEEK_END)
            torn = end > 0 and os.pread(fd, 1, end - 1) != b"\n"  # the machine stopped while a line was written
            _append(fd, b"\n" + line if torn else line)
        finally:
            os.close(fd)

    def close(self) -> None:
        with self._mutex:
            self._end()
        os.close(self._lock_fd)

    def _begin(self) -> tuple[int, Path]:
        path = self.folder / f"{self._next:012}{SEGMENT}"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self._next += 1
        self._file, self._sizes[path] = (fd, path), 0
        _sync(self.folder)
        return fd, path

    def _write(self, fd: int, data: bytes) -> None:
        """After an error the next entries go to another segment."""
        try:
            _append(fd, data)
        except OSError:
            self._end()
            raise

    def _end(self) -> None:
        if self._file is not None:
            os.close(self._file[0])
            self._file = None


def own(root: Path) -> Spool:
    """The first folder under `root` that no other process has; what a dead one left there is drained with the rest."""
    for number in range(10_000):
        try:
            return Spool(root / str(number))
        except BlockingIOError:
            continue
    raise AssertionError(f"10,000 processes hold the folders of {root}")


def orphans(root: Path, mine: Spool) -> Iterator[Spool]:
    """The folders under `root` that hold something and that no process has, each ours while it is looked at."""
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and path != mine.folder):
        if not any(folder.glob(f"*{SEGMENT}")):
            continue
        try:
            spool = Spool(folder)
        except BlockingIOError:
            continue
        except OSError as error:
            log.error("the spool %s cannot be looked at: %s; what it holds stays there", folder, error)
            continue
        try:
            yield spool
        finally:
            spool.close()


def read(path: Path) -> Segment:
    """A segment; what of it cannot be read is told, by name and loudly where it may have been acknowledged."""
    data = path.read_bytes()
    entries: list[Entry] = []
    at = damaged = torn = 0
    while at < len(data):
        begin = at + HEAD
        if begin > len(data):
            torn = len(data) - at
            break
        length, checksum = HEADER.unpack_from(data, at)
        if CHECK.unpack_from(data, at + HEADER.size)[0] != zlib.crc32(data[at : at + HEADER.size]):
            damaged += len(data) - at  # nobody knows where the next one begins
            break
        end = begin + length
        if end > len(data):
            torn = len(data) - at
            break
        entry = entry_of(data[begin:end]) if zlib.crc32(data[begin:end]) == checksum else None
        if entry is not None:
            entries.append(entry)
        else:
            damaged += end - at
        at = end
    if torn:
        log.warning("%s ends in the middle of an entry that nobody was told of; its %d bytes are dropped", path, torn)
    if damaged:
        log.error("%s is damaged: %d bytes of it cannot be read; it is kept as *%s", path, damaged, DAMAGED)
    return Segment(path, tuple(entries), damaged, torn)


def _append(fd: int, data: bytes) -> None:
    """All of it, durably, or nothing: a disk that is nearly full takes a part and says so by a number alone."""
    end = os.lseek(fd, 0, os.SEEK_END)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fdatasync(fd)
    except OSError:
        os.ftruncate(fd, end)
        raise


def _framed(entry: Entry) -> bytes:
    payload = json.dumps(_plain(entry), separators=(",", ":")).encode()
    head = HEADER.pack(len(payload), zlib.crc32(payload))
    return head + CHECK.pack(zlib.crc32(head)) + payload


def _plain(entry: Entry) -> dict[str, Any]:
    """As columns of the store's, whose bytes are base64."""
    if isinstance(entry, Completion):
        kind, columns = "completion", columns_of(entry)
    else:
        kind, columns = "feedback", feedback_columns(entry, None)
    binary = {name: base64.b64encode(v).decode() for name, v in columns.items() if isinstance(v, bytes)}
    return {"kind_of_entry": kind, "binary": sorted(binary), **columns, **binary}


def entry_of(data: bytes) -> Entry | None:
    """The entry of a payload, or of a line of what was refused; None where this program cannot read it, as where a
    newer one wrote it."""
    try:
        plain = json.loads(data)
        plain.pop("why", None)
        kind, binary = plain.pop("kind_of_entry"), plain.pop("binary")
        row = {**plain, **{name: base64.b64decode(plain[name]) for name in binary}}
        return completion_of(row) if kind == "completion" else feedback_of(row)
    except Exception as error:  # whatever it is that a later program may write
        log.error("an entry of the spool cannot be read (%s): did a newer program write it?", type(error).__name__)
        return None


def _sync(folder: Path) -> None:
    """A new or a lost name is durable only once its folder is."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
