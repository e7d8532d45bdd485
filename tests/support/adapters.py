"""Tiny LoRA adapters on disk, as a checkpoint of training holds them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from kto_ray.records.adapters import AdapterVersion

LAYER = "base_model.model.model.layers.0.self_attn.q_proj"
RANK = 4


def tensors(rank: int = RANK, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {
        f"{LAYER}.lora_A.weight": torch.linspace(-1, 1, rank * 8, dtype=dtype).reshape(rank, 8),
        f"{LAYER}.lora_B.weight": torch.linspace(-1, 1, rank * 8, dtype=dtype).reshape(8, rank),
    }


def write(folder: Path, weights: dict[str, torch.Tensor] | None = None, **settings: Any) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 8, "target_modules": ["q_proj"], **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(weights or tensors(), folder / "adapter_model.safetensors")
    (folder / "optimizer.pt").write_bytes(b"trainer state lies beside the adapter in a checkpoint")
    return str(folder)


def known_anew(version: AdapterVersion) -> AdapterVersion:
    """The version as if its files had been published as they lie there now: manifest and store agree with them."""
    folder = Path(version.uri)
    files: dict[str, Any] = {}
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        data = (folder / name).read_bytes()
        files[name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    manifest = {**version.manifest, "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return replace(version, manifest=manifest, sha256=files["adapter_model.safetensors"]["sha256"])
