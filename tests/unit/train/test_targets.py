"""A module that the model lacks is told by name, with what it has."""

from __future__ import annotations

from pathlib import Path

import pytest

from kto_ray.config import load_config
from kto_ray.loop import work
from kto_ray.train.targets import check_targets
from tests.support.tiny import tiny_model


def test_the_models_own_modules_pass(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    check_targets(load_config(None, (f"model.id={model}",)))
    check_targets(load_config(None, (f"model.id={model}", "kto.target_modules=[self_attn.q_proj]")))


@pytest.mark.parametrize("targets", ["[q_proj, v_prjo]", "[qkv_proj]", "[proj]", "[embed_tokens]"])
def test_a_misspelt_one_is_named_before_a_snapshot_is_sealed(tmp_path: Path, targets: str) -> None:
    model = tiny_model(tmp_path / "model")
    config = load_config(None, (f"home={tmp_path}", f"model.id={model}", f"kto.target_modules={targets}"))
    wrong = targets.strip("[]").split(", ")[-1]
    with pytest.raises(ValueError, match=rf"target_modules names '{wrong}', which .* it has: .*k_proj, o_proj, q_proj"):
        work.seal(config)
    assert not (tmp_path / "snapshots").exists()
