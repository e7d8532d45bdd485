"""What a training's end comes to: a published version that names its snapshot, its parent and its reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kto_ray.adapters.files import check_adapter
from kto_ray.config import Config, load_config
from kto_ray.data.tombstone import Purged, Tombstone, purge_rows
from kto_ray.records.adapters import AdapterVersion
from kto_ray.records.training import TrainResult
from kto_ray.train import learn
from tests.support.adapters import RANK, write
from tests.support.provenance import seal

CHAMPION = AdapterVersion("policy@v6-aaaaaa", 6, 1.0, "nowhere", "a" * 64, None, None, "policy@base", RANK)


@pytest.mark.parametrize("reference", ["base", "champion"])
def test_what_was_trained_is_published_with_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str
) -> None:
    starts: list[Any] = []

    def trained(config: Config, run: str, manifest: Any, rows: Any, start: Any) -> TrainResult:
        starts.append(start)
        figures: Any = dict.fromkeys(TrainResult.__slots__, 1.0)
        history: Any = ({"step": 1},)
        return TrainResult(
            **{**figures, "adapter_dir": write(tmp_path / "checkpoint"), "history": history, "dtype": "float32"}
        )

    monkeypatch.setattr(learn, "run_training", trained)
    monkeypatch.setattr(learn, "training_dataset", lambda *_: None)
    manifest, uri = seal(tmp_path, {"train": [("c1", "ann")]}, 1)
    config = load_config(None, (f"home={tmp_path}", f"kto.reference={reference}"))
    done = learn.learn(config, "round-7", 7, uri, CHAMPION)
    check_adapter(done.version, config.serve.max_lora_rank, ())
    assert (done.version.number, done.version.snapshot, done.version.parent) == (7, manifest.id, CHAMPION.name)
    assert starts == [CHAMPION if reference == "champion" else None]
    assert done.history == ({"step": 1},) and done.figures["steps"] == 1.0 and "history" not in done.figures
    assert learn.repeat(config, "again", uri, None) == done.version.sha256


def test_what_learnt_from_who_was_erased_meanwhile_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, uri = seal(tmp_path, {"train": [("c1", "ann")]}, 1)
    monkeypatch.setattr(learn, "training_dataset", lambda *_: None)
    monkeypatch.setattr(
        learn, "run_training", lambda *_: purge_rows(uri, manifest, Tombstone("ann", {"train": 1}, 5.0))
    )
    with pytest.raises(Purged, match="purged of a user"):
        learn.learn(load_config(None, (f"home={tmp_path}/home",)), "round-7", 7, uri, None)
    assert not (tmp_path / "home").exists()
