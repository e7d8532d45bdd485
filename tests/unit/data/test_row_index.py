"""What a snapshot says it holds, through purges that were cut short and shards that are not what they were."""

from __future__ import annotations

from pathlib import Path

import pytest

from kto_ray.data.row_index import held
from kto_ray.data.tombstone import Purged, Tombstone, purge_rows, read_tombstone
from kto_ray.records.users import user_hash
from tests.support.provenance import seal

ANN, BOB = user_hash("s", "ann"), user_hash("s", "bob")
ROWS = {"train": [("c1", "ann"), ("c2", "bob")]}


@pytest.mark.parametrize("indexed", [True, False])
def test_rows_are_found_by_user_and_by_completion(tmp_path: Path, indexed: bool) -> None:
    manifest, uri = seal(tmp_path, ROWS, 1, indexed)
    assert held(uri, manifest, ANN, []) == {"train": 1}
    assert held(uri, manifest, ANN, ["c2"]) == {"train": 2}
    assert held(uri, manifest, None, ["c9"]) == {}


def test_a_purge_that_was_cut_short_is_a_purge_and_the_next_leaves_its_tombstone(tmp_path: Path) -> None:
    manifest, uri = seal(tmp_path, ROWS, 1)
    grave = Tombstone(ANN, {"train": 1}, 5.0)
    purge_rows(uri, manifest, grave)
    Path(uri, "rows.parquet").write_bytes(b"")  # the index is there yet
    with pytest.raises(Purged):
        held(uri, manifest, ANN, [])
    purge_rows(uri, manifest, Tombstone(BOB, {"train": 1}, 9.0))
    assert read_tombstone(uri) == grave, "whose rows there were"


def test_without_an_index_a_shard_that_is_not_whole_is_told(tmp_path: Path) -> None:
    manifest, uri = seal(tmp_path, ROWS, 1, indexed=False)
    shard = Path(uri, "train-00000.parquet")
    shard.write_bytes(shard.read_bytes()[:50])
    with pytest.raises(ValueError, match="damaged"):
        held(uri, manifest, ANN, [])
    shard.unlink()
    with pytest.raises(ValueError, match="missing"):
        held(uri, manifest, ANN, [])
