"""Whether a model has the modules that are to be adapted: told by name before anything is sealed or trained."""

from __future__ import annotations

from kto_ray.config import Config
from kto_ray.model import prepare


def check_targets(config: Config) -> None:
    """Look at the base model's layers, without its weights.

    Raises:
        ValueError: kto.target_modules names one that the model lacks; the message tells what it has.
        StorageAway: the model is not here and cannot be fetched.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = AutoConfig.from_pretrained(prepare(config.model), revision=config.model.revision)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape)
    head = model.get_output_embeddings()
    linear = [name for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not head]
    lacking = [t for t in config.kto.target_modules if not any(f".{name}".endswith(f".{t}") for name in linear)]
    if lacking:
        has = sorted({name.rsplit(".")[-1] for name in linear})
        raise ValueError(
            f"kto.target_modules names {', '.join(map(repr, lacking))}, which {config.model.id!r} does not have; "
            f"it has: {', '.join(has)}"
        )
