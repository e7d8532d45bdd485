"""Tiny experiments: conversations with a liked and a disliked answer, and a config that learns them in a few steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kto_ray.config import Config
from tests.support.tiny import tiny_model


def tiny_config(folder: Path) -> Config:
    model = {"id": tiny_model(folder), "dtype": "float32"}
    kto = {"micro_batch": 4, "accumulate": 1, "learning_rate": 1e-2}
    return Config.model_validate(
        {"model": model, "train": {"dtype": "float32"}, "kto": kto, "data": {"max_length": 64}}
    )


def judged(n: int) -> list[dict[str, Any]]:
    """Rows in TRL's unpaired format, two a conversation: the disliked answer, then the liked one."""
    return [
        {
            "prompt": [{"role": "user", "content": f"Number {i // 2}?"}],
            "completion": [{"role": "assistant", "content": "yes, fine" if i % 2 else "no, never at all"}],
            "label": bool(i % 2),
            "conversation": str(i // 2),
        }
        for i in range(n)
    ]
