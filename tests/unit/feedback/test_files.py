"""Importing and exporting TRL's unpaired preference format."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import pytest

from kto_ray.feedback.files import read_unpaired, write_unpaired
from kto_ray.feedback.labels import examples
from kto_ray.records.completions import Arm

GOOD = {
    "prompt": [{"role": "user", "content": "Hi"}],
    "completion": [{"role": "assistant", "content": "Hello."}],
    "label": True,
}


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_conversations_and_plain_strings(tmp_path: Path) -> None:
    plain = {"prompt": "What is 2+2?", "completion": "4", "label": False, "user": "ann", "created_at": 5}
    (one, up), (two, down) = read_unpaired(lines(tmp_path / "f.jsonl", GOOD, "", plain))
    assert one.text == "Hello." and up.value is True and one.arm is Arm.IMPORT and one.user is None
    assert two.messages == ({"role": "user", "content": "What is 2+2?"},)
    assert (down.value, down.user, two.created_at) == (False, "ann", 5.0)


def test_gzip_and_stable_ids(tmp_path: Path) -> None:
    path = lines(tmp_path / "f.jsonl", GOOD)
    zipped = tmp_path / "f.bin"
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    assert read_unpaired(path)[0][0].id == read_unpaired(zipped)[0][0].id


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("{broken", "not JSON"),
        ([1], "must be an object"),
        ({**GOOD, "label": "yes"}, "label must be true or false, got 'yes'"),
        ({"prompt": "a", "completion": "b"}, "label"),
        ({**GOOD, "prompt": []}, "prompt must be"),
        ({**GOOD, "completion": ""}, "completion must be"),
        ({**GOOD, "completion": [{"role": "assistant"}]}, "completion must be"),
        ({**GOOD, "created_at": "today"}, "created_at"),
    ],
)
def test_a_broken_line_is_named_and_nothing_is_read(tmp_path: Path, row: object, told: str) -> None:
    with pytest.raises(ValueError, match="line 2") as error:
        read_unpaired(lines(tmp_path / "f.jsonl", GOOD, row, GOOD))
    assert told in str(error.value)


def test_files_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        read_unpaired(tmp_path / "none")
    with pytest.raises(ValueError, match="no rows"):
        read_unpaired(lines(tmp_path / "empty"))
    (tmp_path / "cut.gz").write_bytes(gzip.compress(json.dumps(GOOD).encode())[:-12])
    with pytest.raises(ValueError, match="cannot be read"):
        read_unpaired(tmp_path / "cut.gz")


def test_export_reads_back(tmp_path: Path) -> None:
    completion, thumb = read_unpaired(lines(tmp_path / "f.jsonl", {**GOOD, "user": "ann"}))[0]
    file = io.StringIO()
    write_unpaired(examples(completion, [thumb]), file)
    (tmp_path / "g.jsonl").write_text(file.getvalue())
    again, up = read_unpaired(tmp_path / "g.jsonl")[0]
    assert (again.text, again.messages, again.user, up.value) == (completion.text, completion.messages, "ann", True)


def test_the_human_data_is_read_whole(shared: Path) -> None:
    rows = read_unpaired(shared / "data" / "human_thumbs.jsonl.gz")
    assert len(rows) == 3524 and sum(bool(thumb.value) for _, thumb in rows) == 1762
    assert len({completion.user for completion, _ in rows}) == 1760
