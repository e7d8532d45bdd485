"""LoRA for vLLM on a CPU (see `cpu` for why and how it is installed).

A wrapper belongs to a model and is told before a forward pass which adapter slot each row uses. The rows are grouped
by slot there, once, instead of in each of the several hundred LoRA layers of a forward pass. A row without an adapter
is in no group, so no adapter's weights can reach it, not even as 0 * NaN. What a layer computes then is `cpu_layer`'s.
"""

from typing import Any

import torch
from vllm.lora.layers import LoRAMapping
from vllm.lora.model_manager import LoRAModelManager
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from kto_ray.serve.policy.cpu_layer import Layer, RowGroups, Spare, fused, group_rows

vllm_activate = LoRAModelManager.activate_adapter
vllm_map = LoRAModelManager.set_adapter_mapping


class GroupedPunicaWrapper(PunicaWrapperCPU):  # type: ignore[misc]  # vLLM is not followed by mypy
    """Replaces what linear, embedding and logits layers call; fully sharded adapters keep vLLM's own path."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.token_rows = RowGroups(0, ())
        self.sampler_rows = RowGroups(0, ())
        self.spare = Spare()
        self.layers: dict[torch.Tensor, Layer] = {}  # by the layer's first B; tensors compare by identity here
        self._fresh: list[tuple[Layer, int]] = []

    def loaded(self, slot: int) -> None:
        """An adapter was written into a slot."""
        self.spare.loaded(slot)
        for layer in self.layers.values():
            layer.loaded(slot)
        self._fresh = [*(of for of in self._fresh if of[1] != slot), *((one, slot) for one in self.layers.values())]

    def begin(self) -> None:
        """A forward pass, which lays out what was loaded before anybody asks for it."""
        if self.spare.begin(tuple(slot for slot, _ in self.token_rows.groups)):
            for layer in self.layers.values():
                layer.plan_anew()
        while self._fresh and self.spare.left_s > 0:
            layer, slot = self._fresh.pop()
            if layer.holds(slot)[0]:
                layer.products((slot,))

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        super().update_metadata(*args, **kwargs)
        self.token_rows = group_rows(self.token_lora_indices)
        self.sampler_rows = group_rows(self.sampler_indices)

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **kwargs: Any,
    ) -> None:
        self._add(y, x, lora_a_stacked, lora_b_stacked, self.token_rows, scale)

    def add_lora_logits(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        scale: float,
        **kwargs: Any,
    ) -> None:
        self._add(y, x, (lora_a_stacked,), (lora_b_stacked,), self.sampler_rows, scale)

    def add_lora_embedding(
        self, y: torch.Tensor, x: torch.Tensor, lora_b_stacked: torch.Tensor, add_inputs: bool = True, **kwargs: Any
    ) -> None:
        b_all = lora_b_stacked.squeeze(1)
        width = min(y.shape[1], b_all.shape[1])
        if self.token_rows.groups and not add_inputs:
            y[:, :width] = 0
        for slot, index in self.token_rows.groups:
            if not b_all[slot].any():  # an adapter without an embedding of its own
                continue
            rows = torch.arange(len(x)) if index is None else index
            y[:, :width].index_add_(0, rows, x[rows].to(y.dtype) @ b_all[slot, :width].t().to(y.dtype))

    def _add(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        a_stacked: tuple[torch.Tensor, ...],
        b_stacked: tuple[torch.Tensor, ...],
        rows: RowGroups,
        scale: float,
    ) -> None:
        if not rows.groups:
            return
        layer = self.layers.get(b_stacked[0])
        if layer is None:
            layer = self.layers[b_stacked[0]] = Layer(*fused(a_stacked, b_stacked), y.dtype, self.spare)
        layer.add(y, x, rows, scale)


def activate_adapter(manager: LoRAModelManager, lora_id: int) -> bool:
    """vLLM's, which writes an adapter's weights into a slot of every layer; then who made products of them is told.

    vLLM asks before each forward pass, of each adapter that it uses, and writes where it is not yet.
    """
    written = lora_id not in manager._active_adapters
    try:
        return bool(vllm_activate(manager, lora_id))
    finally:
        if written:
            for layer in manager.modules.values():
                # Torch finds a module's own modules only after all else has failed, and a layer asks for this one
                # eight times a step: that takes as long as its two products of a few rows.
                vars(layer)["base_layer"] = layer.base_layer
        if written and lora_id in manager.lora_index_to_id:
            slot = manager.lora_index_to_id.index(lora_id)
            for wrapper in manager.punica_wrapper_mapping.values():
                wrapper.loaded(slot)


def set_adapter_mapping(manager: LoRAModelManager, mapping: LoRAMapping) -> None:
    """vLLM's, which it calls once before each forward pass."""
    vllm_map(manager, mapping)
    for wrapper in manager.punica_wrapper_mapping.values():
        wrapper.begin()
