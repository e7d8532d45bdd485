"""What is refused of an adapter's tensors by their names and shapes. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

Shape = tuple[int, ...]

PART = re.compile(r"(?P<layer>.+)\.lora_(?P<part>A\.weight|B\.weight|magnitude_vector)")
A, B, MAGNITUDE = "A.weight", "B.weight", "magnitude_vector"  # the last is DoRA's


def layers_of(uri: str, tensors: Mapping[str, Shape]) -> dict[str, dict[str, Shape]]:
    """The shapes of each layer's parts: lora_A is (rank, inputs), lora_B (outputs, rank).

    Raises:
        ValueError: a tensor is no part of a LoRA layer, or a matrix is none.
    """
    layers: dict[str, dict[str, Shape]] = {}
    for name, shape in tensors.items():
        found = PART.fullmatch(name)
        if found is None:
            raise ValueError(
                f"adapter {uri!r}: tensor {name} is no part of a LoRA layer (lora_A.weight, lora_B.weight): engines "
                "load low ranks only; save the adapter by save_pretrained"
            )
        if len(shape) != (1 if found["part"] == MAGNITUDE else 2) or 0 in shape:
            raise ValueError(
                f"adapter {uri!r}: tensor {name} has shape {shape}, and lora_A is (rank, inputs), lora_B (outputs, "
                "rank); save the adapter by save_pretrained"
            )
        layers.setdefault(found["layer"], {})[found["part"]] = shape
    return layers


def refuse_senseless(uri: str, layers: Mapping[str, Mapping[str, Shape]], ranks: Collection[int], dora: bool) -> None:
    """Make sure that every layer's parts fit together and to the config.

    Args:
        ranks: those that the config tells.
        dora: whether the config says so: its adapters are trained and evaluated, and vLLM refuses them by itself.

    Raises:
        ValueError: they do not.
    """
    for layer, parts in layers.items():
        if A not in parts or B not in parts:
            raise ValueError(
                f"adapter {uri!r}: layer {layer} has only one of lora_A and lora_B; export the adapter again"
            )
        (rank, _), (_, of_b) = parts[A], parts[B]
        if rank != of_b or rank not in ranks:
            raise ValueError(
                f"adapter {uri!r}: layer {layer} has rank {rank} in lora_A and {of_b} in lora_B, and its config tells "
                f"{', '.join(map(str, sorted(ranks)))}: they are of different adapters; export it again"
            )
        if (MAGNITUDE in parts) is not dora:
            lacks = f"{'has no' if dora else 'has a'} lora_magnitude_vector"
            raise ValueError(
                f"adapter {uri!r}: use_dora is {str(dora).lower()}, and layer {layer} {lacks}; train it again with "
                "kto.dora: false, as the engine serves it"
            )
