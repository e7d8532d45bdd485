"""A model of a few thousand weights, for tests in which training must run but need not learn."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from kto_ray.config.serving import ModelSection
from kto_ray.model import resolve_model


def tiny_model(folder: Path | str, tied: bool = True) -> str:
    """Save a random Llama (2 layers, hidden size 64) with the embedded model's tokenizer and template; its path."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(resolve_model(ModelSection()))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.2,
        tie_word_embeddings=tied,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def too_big_model(model: str, folder: Path) -> str:
    """A copy of a tiny model whose config asks for an MLP of 2^50 bytes, which its file does not hold."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 2**42}))
    weights = load_file(folder / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if ".mlp." not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)
