"""Adapters that nobody trained: random weights of the shape that training gives, published as trained ones are."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from kto_ray.adapters.publish import publish
from kto_ray.config import Config
from kto_ray.model import resolve_model
from kto_ray.paths import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from kto_ray.records.adapters import AdapterVersion
from kto_ray.records.snapshots import SnapshotManifest

STRENGTH = 0.02  # of B's entries, where A's are those of a new adapter: greedy answers differ within a few words


def make(config: Config, folder: Path, seed: int, strength: float = STRENGTH) -> str:
    """An adapter's two files, as a checkpoint of training holds them; the folder.

    Args:
        config: the model, and kto's rank, alpha and target_modules, say of which shape.
        seed: whoever has another gives other answers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kto = config.kto
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": kto.rank, "lora_alpha": kto.alpha, "bias": "none"}
    settings |= {"use_rslora": kto.rslora, "target_modules": sorted(kto.target_modules)}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(settings))
    chance = torch.Generator().manual_seed(seed)
    weights = {}
    for name, (wide, out) in _linear(config).items():
        weights[f"base_model.model.{name}.lora_A.weight"] = torch.randn(kto.rank, wide, generator=chance) / wide**0.5
        weights[f"base_model.model.{name}.lora_B.weight"] = torch.randn(out, kto.rank, generator=chance) * strength
    save_file(weights, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    return str(folder)


def published(config: Config, folder: str, number: int) -> AdapterVersion:
    """As a round publishes what it trained. The snapshot that its manifest names has no rows, and is nowhere."""
    return publish(config, folder, number, _nothing(config), None, time.time())


def _linear(config: Config) -> dict[str, tuple[int, int]]:
    """Name -> (inputs, outputs) of the layers that an adapter changes."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(resolve_model(config.model)))
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)}
    wanted = config.kto.target_modules
    return {
        name: (one.in_features, one.out_features) for name, one in layers.items() if name.rpartition(".")[2] in wanted
    }


def _nothing(config: Config) -> SnapshotManifest:
    return SnapshotManifest(
        id="0" * 16,
        created_at=0.0,
        n_desirable=0,
        n_undesirable=0,
        n_holdout_desirable=0,
        n_holdout_undesirable=0,
        sources={},
        dropped={},
        ratio=1.0,
        ratio_low=0.0,
        ratio_high=1.0,
        desirable_weight=1.0,
        undesirable_weight=1.0,
        micro_batch=config.kto.micro_batch,
        seed=config.data.seed,
        model=config.model.id,
        tokenizer_hash="",
        template_hash="",
        max_length=config.data.max_length,
        shards=(),
        newest_feedback_at=0.0,
    )
