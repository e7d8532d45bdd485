"""Publishing an adapter and refusing bad ones, on real (tiny) safetensors files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from kto_ray.adapters.files import adapter_name, check_adapter
from kto_ray.adapters.publish import as_trained, publish
from kto_ray.config import Config
from kto_ray.config.platform import HttpSection
from kto_ray.records.adapters import AdapterVersion
from tests.support.adapters import LAYER, RANK, known_anew, tensors, write
from tests.support.rows import manifest

MAX_RANK = 16


def champion() -> AdapterVersion:
    return AdapterVersion("policy@v6-aaaaaa", 6, 1.0, "nowhere", "a" * 64, None, None, "policy@base", RANK)


@pytest.fixture
def config(tmp_path: Path) -> Any:
    return Config(home=str(tmp_path / "home"))


def published(config: Config, folder: Path, **settings: Any) -> Any:
    return publish(config, write(folder, **settings), 7, manifest(), champion(), created_at=5.0)


def in_memory(bucket: str) -> Config:
    here = HttpSection(spool="/tmp/unused")
    return Config(home=f"memory://{bucket}/kto", store_url="sqlite:////tmp/unused.db", http=here)


def test_the_name_holds_number_and_hash() -> None:
    assert adapter_name("policy", 7, "3fa9c1" + "0" * 58) == "policy@v7-3fa9c1"


def test_publishes_two_files_and_a_manifest(config: Any, tmp_path: Path) -> None:
    version = published(config, tmp_path / "checkpoint")
    folder = Path(version.uri)
    assert {file.name for file in folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
    }
    assert version.name == f"policy@v7-{version.sha256[:6]}" and version.rank == RANK
    assert (version.parent, version.reference, version.snapshot) == ("policy@v6-aaaaaa", "policy@base", manifest().id)
    written = json.loads((folder / "manifest.json").read_text())
    assert written == version.manifest
    assert written["seed"] == 7 and written["config"]["kto"]["beta"] == 0.3
    assert written["versions"]["trl"] and written["versions"]["torch"]
    check_adapter(version, MAX_RANK, ())


def test_where_a_training_is_shown_is_no_part_of_an_adapter(tmp_path: Path) -> None:
    """It may hold a password; and what is trained again is shown where its service says."""
    config = Config.model_validate({"home": str(tmp_path), "train": {"mlflow_uri": "http://u:s3cr3t@host"}})
    version = published(config, tmp_path / "checkpoint")
    assert "s3cr3t" not in (Path(version.uri) / "manifest.json").read_text()
    elsewhere = Config.model_validate(
        {"home": str(tmp_path), "train": {"mlflow_uri": "http://other", "cpus_per_worker": 3}}
    )
    then = as_trained(elsewhere, version)
    assert then.train.mlflow_uri == "http://other" and then.train.cpus_per_worker == config.train.cpus_per_worker


def test_publishing_again_returns_what_is_there(config: Any, tmp_path: Path) -> None:
    first = published(config, tmp_path / "checkpoint")
    again = publish(config, str(tmp_path / "checkpoint"), 7, manifest(), None, created_at=99.0)
    assert again == first


@pytest.mark.parametrize("planted", [b"{}", b"[]", b"\xff", b"another's"])
def test_what_somebody_else_put_there_first_is_not_taken_for_ours(config: Any, tmp_path: Path, planted: bytes) -> None:
    first = published(config, tmp_path / "checkpoint")
    file = Path(first.uri, "manifest.json")
    if planted == b"another's":
        write(Path(first.uri), lora_alpha=800)
        known_anew(first)
    else:
        file.write_bytes(planted)
    again = publish(config, str(tmp_path / "checkpoint"), 7, manifest(), champion(), created_at=99.0)
    assert again.created_at == 99.0 and again.sha256 == first.sha256
    check_adapter(again, MAX_RANK, ())


def test_with_a_key_it_is_signed(config: Any, tmp_path: Path) -> None:
    keyed = Config.model_validate({"home": config.home, "adapters": {"signing_keys": ("k" * 32,)}})
    version = published(keyed, tmp_path / "checkpoint")
    check_adapter(version, MAX_RANK, ("k" * 32,))
    check_adapter(version, MAX_RANK, ())
    assert "k" * 32 not in Path(version.uri, "manifest.json").read_text()


def test_other_weights_get_another_name(config: Any, tmp_path: Path) -> None:
    first = published(config, tmp_path / "a")
    other = published(config, tmp_path / "b", weights=tensors(dtype=torch.bfloat16))
    assert first.name != other.name and first.uri != other.uri


def test_works_on_object_storage_uris(tmp_path: Path) -> None:
    config = in_memory("bucket")
    version = published(config, tmp_path / "checkpoint")
    check_adapter(version, MAX_RANK, ())
    assert version.uri.startswith("memory://")
    fs = fsspec.filesystem("memory")
    fs.pipe_file(f"{version.uri}/adapter_model.safetensors", b"cut")
    with pytest.raises(ValueError, match="changed after it was published"):
        check_adapter(version, MAX_RANK, ())


def damaged(value: float, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    weights = tensors(dtype=dtype)
    weights[f"{LAYER}.lora_B.weight"][0, 0] = value
    return weights


BAD = {
    "nan": (dict(weights=damaged(math.nan)), "NaN"),
    "inf": (dict(weights=damaged(-math.inf)), "NaN or Inf"),
    "nan in bfloat16": (dict(weights=damaged(math.nan, torch.bfloat16)), "lora_B"),
    "inf in float16": (dict(weights=damaged(math.inf, torch.float16)), "lora_B"),
    "rank by config": (dict(r=32), "rank 32"),
    "rank by pattern": (dict(rank_pattern={"q_proj": 64}), "rank 64"),
    "rank by weights": (dict(weights=tensors(rank=17)), "rank 17"),
    "lm_head target": (dict(target_modules=["q_proj", "lm_head"]), "lm_head"),
    "lm_head saved": (dict(modules_to_save=["lm_head"]), "lm_head"),
    "lm_head weights": (dict(weights=tensors() | {"base_model.model.lm_head.weight": torch.ones(2, 2)}), "lm_head"),
    "no LoRA": (dict(peft_type="IA3"), "peft_type"),
    "no rank": (dict(r=None), "r: Input should be"),
    "a rank in words": (dict(r="16"), "r: Input should be"),
    "patterns in words": (dict(rank_pattern={"q_proj": "many"}), "rank_pattern.q_proj"),
    "quantized type": (dict(weights=tensors() | {f"{LAYER}.x": torch.ones(2, dtype=torch.int8)}), "I8"),
}


@pytest.mark.parametrize(("settings", "fault"), BAD.values(), ids=BAD.keys())
def test_a_bad_adapter_is_never_published(config: Any, tmp_path: Path, settings: Any, fault: Any) -> None:
    with pytest.raises(ValueError, match=fault):
        published(config, tmp_path / "checkpoint", **settings)
    assert not (Path(config.home) / "adapters").exists()
