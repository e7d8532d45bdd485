"""A model of a few thousand weights, for tests in which training must run but need not learn."""

from __future__ import annotations

from pathlib import Path

from kto_ray.config import ModelSection
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
