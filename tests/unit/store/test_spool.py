"""The spool: what was acknowledged is read again, whatever became of a file's end or middle, and a disk's faults come
before anybody is acknowledged."""

from __future__ import annotations

import errno
import json
import os
import resource
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kto_ray.records.completions import ExternalRef
from kto_ray.records.feedback import FeedbackKind, Signal
from kto_ray.store.spool import (
    CHECK,
    DAMAGED,
    HEAD,
    HEADER,
    LOCK,
    REFUSED,
    SEGMENT,
    Spool,
    SpoolFailed,
    _framed,
    _plain,
    orphans,
    own,
    read,
)
from tests.support.rows import completion, thumb

WHOLE = completion(
    "c1",
    messages=({"role": "user", "content": "Hé \ud800"},),  # half a surrogate is legal JSON
    external=ExternalRef("chat", "k", "m"),
    params={"top_p": 0.9},
    prompt_ids=b"\x00\x01\xff\x00",
    answer_ids=b"\x02\x00\x00\x00",
    tool_calls=({"id": "t"},),
    first_token_s=0.1,
)
SAID = thumb("f1", idempotency_key="k", key_owner="app", body_hash="h", tags={"a": [1]}, reason_codes=("r",))
SIGNAL = thumb(
    "f2", of=None, value=None, kind=FeedbackKind.SIGNAL, signal=Signal.COPIED, external=ExternalRef("a", "b", "c")
)


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    opened = Spool(tmp_path / "spool")
    yield opened
    opened.close()


def segments(spool: Spool) -> list[Path]:
    return sorted(spool.folder.glob(f"*{SEGMENT}"))


def three(folder: Path) -> tuple[Path, bytes]:
    """A segment of three entries, and its bytes."""
    spool = Spool(folder)
    spool.append([completion("c1")])
    spool.append([completion("c2"), completion("c3")])
    [path] = segments(spool)
    spool.close()
    return path, path.read_bytes()


def test_entries_come_back_as_they_went_in_and_in_order(spool: Spool) -> None:
    spool.append([WHOLE, SAID])
    spool.append([SIGNAL])
    assert spool.depth == 3
    segment = spool.oldest()
    assert segment is not None and segment.entries == (WHOLE, SAID, SIGNAL)
    spool.append([completion("later")])  # to another segment
    assert spool.depth == 4 and len(segments(spool)) == 2
    spool.drop(segment)
    assert spool.depth == 1 and not segment.path.exists()


def test_only_the_owner_may_read_it(spool: Spool) -> None:
    spool.append([WHOLE])
    [path] = segments(spool)
    assert path.stat().st_mode & 0o777 == 0o600 and spool.folder.stat().st_mode & 0o777 == 0o700


def test_a_new_process_finds_what_was_left_and_begins_a_segment_of_its_own(spool: Spool) -> None:
    spool.append([completion("c1")])
    spool.close()
    again = Spool(spool.folder)
    again.append([completion("c2")])
    assert again.depth == 2
    first = again.oldest()
    assert first is not None and [entry.id for entry in first.entries] == ["c1"]
    again.close()
    spool._lock_fd = os.open(spool.folder / LOCK, os.O_RDWR)  # for the fixture


def test_a_tail_that_is_torn_anywhere_loses_only_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, data = three(tmp_path)
    ends = [end for end in range(len(data) + 1) if not read_cut(path, data[:end]).torn]
    assert len(ends) == 4 and ends[0] == 0 and ends[-1] == len(data)  # nothing, one, two, three entries
    for end in range(0, len(data)):
        found = read_cut(path, data[:end])
        assert len(found.entries) == sum(end >= whole for whole in ends[1:]) and not found.damaged
    assert "nobody was told of" in caplog.text


def read_cut(path: Path, data: bytes) -> Any:
    path.write_bytes(data)
    return read(path)


def test_a_damaged_middle_is_told_and_kept_and_what_follows_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, data = three(tmp_path)
    path.write_bytes(data[: HEAD + 5] + b"?" + data[HEAD + 6 :])  # in the first one's payload
    spool = Spool(tmp_path)
    segment = spool.oldest()
    assert segment is not None and [entry.id for entry in segment.entries] == ["c2", "c3"] and segment.damaged
    assert "is damaged" in caplog.text
    spool.drop(segment)
    assert spool.empty and path.with_suffix(DAMAGED).exists()
    spool.close()


def test_a_damaged_length_is_told_and_kept(tmp_path: Path) -> None:
    path, data = three(tmp_path)
    found = read_cut(path, b"\xff\xff" + data[2:])
    assert found.entries == () and found.damaged == len(data) and not found.torn


def of_a_newer_program(folder: Path) -> Path:
    """A segment whose second of three entries has a field that this program does not know."""
    folder.mkdir(parents=True)
    newer = json.dumps({**_plain(completion("c2")), "mood": "new"}).encode()
    head = HEADER.pack(len(newer), zlib.crc32(newer))
    path = folder / f"000000000001{SEGMENT}"
    whole = head + CHECK.pack(zlib.crc32(head)) + newer
    path.write_bytes(_framed(completion("c1")) + whole + _framed(completion("c3")))
    return path


def test_what_a_newer_program_wrote_is_kept_and_what_can_be_read_is_read(tmp_path: Path) -> None:
    path = of_a_newer_program(tmp_path / "0")
    for number in range(2):  # and nothing set aside is overwritten later
        spool = Spool(path.parent)
        if number:
            spool.append([completion("c4")])
        segment = spool.oldest()
        assert segment is not None and [e.id for e in segment.entries] == (["c4"] if number else ["c1", "c3"])
        assert bool(segment.damaged) is not bool(number)
        spool.drop(segment)
        spool.close()
    assert [p.name for p in path.parent.glob("*0*")] == ["000000000001.damaged"]


def test_a_folder_that_cannot_be_read_is_locked_by_nobody(tmp_path: Path) -> None:
    Spool(tmp_path).close()
    odd = tmp_path / f"odd{SEGMENT}"
    odd.touch()
    with pytest.raises(ValueError, match="odd"):
        Spool(tmp_path)
    odd.unlink()
    Spool(tmp_path).close()


@contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process grows beyond 1,000 bytes: not pytest's log either, so nothing else is done meanwhile."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_told_and_leaves_no_part(spool: Spool) -> None:
    with full_disk():
        spool.append([completion("c1")])
        with pytest.raises(SpoolFailed, match="nothing was recorded"):
            spool.append([completion("c2"), completion("c3", text="long" * 1000)])
        spool.append([completion("c4")])
    assert spool.depth == 2
    assert [entry.id for path in segments(spool) for entry in read(path).entries] == ["c1", "c4"]
    assert not any(read(path).torn for path in segments(spool))


@pytest.mark.parametrize("fails", ["open", "write", "fdatasync"])
def test_a_disk_that_fails_is_told(spool: Spool, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    def broken(*_: Any) -> Any:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr(os, fails, broken)
        with pytest.raises(SpoolFailed, match="Read-only"):
            spool.append([completion("c1")])
    spool.append([completion("c2")])
    assert [entry.id for path in segments(spool) for entry in read(path).entries] == ["c2"]


def test_what_the_store_has_is_not_waited_for_again_whatever_the_disk_does(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    for ends in ("by a disk that fails", "by hand"):
        spool.append([completion("c1")])
        segment = spool.oldest()
        assert segment is not None
        with monkeypatch.context() as patch:
            if ends == "by hand":
                segment.path.unlink()
                spool.drop(segment)
            else:
                patch.setattr(os, "fsync", broken)
                with pytest.raises(OSError, match="Input/output"):
                    spool.drop(segment)
        assert spool.empty and spool.oldest() is None, ends


def refused(spool: Spool) -> list[str]:
    return [json.loads(line)["id"] for line in (spool.folder / REFUSED).read_text().splitlines()]


def test_what_is_refused_is_written_whole_where_the_disk_takes_a_part_at_a_time(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:100]))
    spool.refuse(WHOLE, "too long")
    assert refused(spool) == [WHOLE.id]


def test_what_cannot_be_set_aside_leaves_no_part_and_what_follows_a_torn_line_begins_its_own(spool: Spool) -> None:
    spool.refuse(SAID, "key reused")
    with full_disk(), pytest.raises(OSError, match="File too large"):
        spool.refuse(completion("c2", text="long" * 1000), "too long")
    spool.refuse(completion("c3"), "why")
    assert refused(spool) == [SAID.id, "c3"]
    with (spool.folder / REFUSED).open("ab") as file:
        file.write(b'{"why": "to')  # the machine stopped
    spool.refuse(completion("c4"), "why")
    lines = (spool.folder / REFUSED).read_text().splitlines()
    assert len(lines) == 4 and json.loads(lines[3])["id"] == "c4"


def test_each_process_has_a_folder_of_its_own_and_adopts_what_the_dead_left(tmp_path: Path) -> None:
    first, second = own(tmp_path), own(tmp_path)
    assert first.folder != second.folder
    second.append([completion("c1")])
    assert list(orphans(tmp_path, first)) == []  # its process lives
    second.close()
    left = [(spool.folder, spool.depth) for spool in orphans(tmp_path, first)]
    assert left == [(second.folder, 1)]
    again = own(tmp_path)
    assert again.folder == second.folder and again.depth == 1
    first.close()
    again.close()
