"""A model that trains in milliseconds a step."""

from __future__ import annotations

from pathlib import Path


def tiny_model(folder: Path) -> str:
    """Write a random Llama of two layers with the embedded model's tokenizer to `folder`, for `model.id`."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from kto_ray.config import Config
    from kto_ray.model import resolve_model

    tokenizer = AutoTokenizer.from_pretrained(resolve_model(Config().model))
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
