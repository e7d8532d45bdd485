"""An adapter's files on their way to whoever loads them: read once, checked, and copied to where nobody else writes.

What was checked must be what is loaded, so nothing is loaded from where an adapter was published: the very bytes that
were checked are written to a folder of this user alone, named by their hashes, and the engine is pointed there. It may
read them again at any time (vLLM does when a slot was taken), so a process that holds a copy locks it, and a copy goes
from the disk when the last one lets it go.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import posixpath
import shutil
import stat
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from kto_ray.adapters.check import MAX_JSON, AdapterFiles, known_files, published, sha256_of, sound
from kto_ray.model import cache_dir
from kto_ray.paths import (
    ADAPTER_CONFIG,
    ADAPTER_MANIFEST,
    ADAPTER_WEIGHTS,
    StorageAway,
    filesystem,
    is_local,
    write_atomic,
)
from kto_ray.records.adapters import AdapterVersion

log = logging.getLogger(__name__)

PICKLES = (".bin", ".pt", ".pth", ".pkl")


@dataclass(slots=True)
class _Hold:
    """Of a private copy by this process: the lock, an open descriptor of its folder, and how often it was taken."""

    lock: int
    taken: int = 1


_held: dict[str, _Hold] = {}
_holding = threading.Lock()


def adapter_name(served_name: str, number: int, sha256: str) -> str:
    """The immutable name under which an adapter is served: `policy@v7-3fa9c1`. `sha256` is that of the weights."""
    return f"{served_name}@v{number}-{sha256[:6]}"


def fetch(version: AdapterVersion, max_rank: int, keys: Sequence[str]) -> str:
    """A private copy of a published adapter, checked, which this process holds until it ends, or lets it go as often as
    it fetched it.

    Args:
        keys: any of which may have signed it (adapters.signing_keys); where there are none, nothing need be signed.

    Raises:
        ValueError: the files are missing, damaged, unsafe or not signed (see `check`).
        OSError: the storage cannot be reached, or the copy cannot be written.
    """
    copy = str(_copies() / _name_of_copy(version))
    _hold(copy)
    try:
        try:
            check_adapter(version, max_rank, keys, copy)
        except ValueError:  # there is none yet, it is damaged, or its manifest was signed by a key that is gone
            for file, data in _read_published(version, max_rank, keys, version.uri).items():
                write_atomic(f"{copy}/{file}", data)
    except BaseException:
        let_go(copy)
        raise
    return copy


@contextmanager
def fetched(version: AdapterVersion, max_rank: int, keys: Sequence[str]) -> Iterator[str]:
    """The copy that `fetch` makes, as long as it is needed."""
    copy = fetch(version, max_rank, keys)
    try:
        yield copy
    finally:
        let_go(copy)


def let_go(copy: str) -> None:
    """Give up a private copy, which goes from the disk if no other process holds it."""
    with _holding:
        hold = _held[copy]
        hold.taken -= 1
        if hold.taken:
            return
        del _held[copy]
    _remove(copy, hold.lock)


def sweep(wanted: Collection[AdapterVersion]) -> None:
    """Remove the private copies that nobody holds: what killed processes left, but of what is wanted again."""
    kept = set()
    for version in wanted:
        with suppress(ValueError):
            kept.add(_name_of_copy(version))
    for copy in _copies().iterdir():
        if copy.name not in kept:
            with suppress(OSError):
                _remove(str(copy), os.open(copy, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW))


def check_adapter(version: AdapterVersion, max_rank: int, keys: Sequence[str], uri: str | None = None) -> None:
    """Make sure that a published adapter is whole and loadable, where it was published or in a copy (`uri`).

    Raises:
        ValueError: see `check.published`.
    """
    _read_published(version, max_rank, keys, uri or version.uri)


def read_sound(uri: str, max_rank: int) -> AdapterFiles:
    """An adapter as a training left it, beside other files.

    Raises:
        ValueError: see `check.sound`.
    """
    files = read_folder(uri, {ADAPTER_CONFIG: MAX_JSON, ADAPTER_WEIGHTS: None})
    return sound(uri, files[ADAPTER_CONFIG], files[ADAPTER_WEIGHTS], max_rank)


def _read_published(version: AdapterVersion, max_rank: int, keys: Sequence[str], uri: str) -> dict[str, bytes]:
    limits = {file: named.bytes for file, named in known_files(version).items()}
    files = read_folder(uri, {**limits, ADAPTER_MANIFEST: MAX_JSON})
    published(uri, version, files, max_rank, keys)
    return files


def read_folder(uri: str, limits: Mapping[str, int | None]) -> dict[str, bytes]:
    """Some files of a folder, each read once.

    Args:
        limits: name -> the most bytes that are read of it, None for all. Nothing else of the folder is looked at.

    Raises:
        ValueError: one is missing, larger, or no plain file of that folder; or pickles lie beside them.
        OSError: the storage cannot be reached.
    """
    path = filesystem(uri)[1]
    if ".." in path.split("/"):
        raise ValueError(f"adapter {uri!r} leads out of its folder by '..'; give the folder itself")
    return _read_local(uri, path, limits) if is_local(uri) else _read_remote(uri, limits)


def _read_local(uri: str, path: str, limits: Mapping[str, int | None]) -> dict[str, bytes]:
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        if not os.path.isdir(above := os.path.dirname(path)):  # a volume that is not mounted: it may come back
            raise StorageAway(f"adapter {uri!r} is out of reach: there is no {above}, where adapters lie") from None
        what = "is a symbolic link, which may lead anywhere" if os.path.islink(path) else "does not exist"
        raise ValueError(f"adapter {uri!r} {what}; export it first") from None
    try:
        _refuse_names(uri, os.listdir(folder), limits)
        return {name: _read_file(uri, folder, name, limit) for name, limit in limits.items()}
    finally:
        os.close(folder)


def _read_file(uri: str, folder: int, name: str, limit: int | None) -> bytes:
    """Without waiting, should it be a pipe."""
    try:
        opened = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise ValueError(
            f"adapter {uri!r}: {name} is a symbolic link, which may lead anywhere; put the file itself there"
        ) from None
    with os.fdopen(opened, "rb") as file:
        told = os.fstat(opened)
        if not stat.S_ISREG(told.st_mode):
            raise ValueError(f"adapter {uri!r}: {name} is no plain file; export it again")
        _refuse_size(uri, name, told.st_size, limit)
        return file.read(told.st_size)  # what is written to it meanwhile is not read


def _read_remote(uri: str, limits: Mapping[str, int | None]) -> dict[str, bytes]:
    fs, path = filesystem(uri)
    fs.invalidate_cache(path)  # a listing of before would hide what came back
    try:
        listed = {posixpath.basename(str(file["name"])): int(file["size"] or 0) for file in fs.ls(path, detail=True)}
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"adapter {uri!r} does not exist; export it first") from None
    _refuse_names(uri, listed, limits)
    for name, limit in limits.items():
        _refuse_size(uri, name, listed[name], limit)
    # By its length: what has grown since is not read.
    return {name: bytes(fs.cat_file(f"{path}/{name}", start=0, end=listed[name])) for name in limits}


def _refuse_names(uri: str, names: Collection[str], wanted: Collection[str]) -> None:
    pickles = sorted(name for name in names if name.startswith("adapter_model") and name.endswith(PICKLES))
    if pickles:
        raise ValueError(
            f"adapter {uri!r} holds {', '.join(pickles)}: a pickle runs code when it is loaded, and engines fall back "
            f"to it; save the adapter as {ADAPTER_WEIGHTS} (save_pretrained does) and delete the pickle"
        )
    for name in wanted:
        if name not in names:
            why = ", which is written last: it was never fully published" if name == ADAPTER_MANIFEST else ""
            held = ", ".join(sorted(names)) or "nothing"
            raise ValueError(f"adapter {uri!r} has no {name}{why} (it holds: {held}); export it again")


def _refuse_size(uri: str, name: str, size: int, limit: int | None) -> None:
    if limit is not None and size > limit:
        raise ValueError(
            f"adapter {uri!r}: {name} has {size} bytes, and {limit} are the most that it may have, so it was not read: "
            "it is not what was published; export it again"
        )


def _copies() -> Path:
    """The folder of all private copies of this user."""
    folder = cache_dir() / "adapters"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)  # fails where it is another user's
    return folder


def _name_of_copy(version: AdapterVersion) -> str:
    known = known_files(version)
    return sha256_of("".join(known[file].sha256 for file in sorted(known)).encode())


def _hold(copy: str) -> None:
    """Lock a copy's folder, empty where there is none yet. What removes one does so under a lock that excludes this."""
    with _holding:
        if copy in _held:
            _held[copy].taken += 1
            return
        while copy not in _held:
            with suppress(FileExistsError):
                os.mkdir(copy, 0o700)
            try:
                lock = os.open(copy, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            except FileNotFoundError:  # removed just now
                continue
            fcntl.flock(lock, fcntl.LOCK_SH)
            if _is(copy, lock):
                _held[copy] = _Hold(lock)
            else:
                os.close(lock)


def _remove(copy: str, lock: int) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is(copy, lock):
            shutil.rmtree(copy)
    except OSError as error:  # another process holds it, or the file system knows no locks of folders: it stays
        log.debug("the copy %s stays: %s", copy, error)
    finally:
        os.close(lock)


def _is(copy: str, lock: int) -> bool:
    """Whether the folder of this name is still the one that was opened."""
    try:
        return os.path.samestat(os.stat(copy, follow_symlinks=False), os.fstat(lock))
    except FileNotFoundError:
        return False
