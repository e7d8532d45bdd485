"""LoRA for vLLM on a CPU: one matrix product per adapter in the batch (see `lora_cpu` for why and how it is installed).

A wrapper belongs to a model and is told before a forward pass which adapter slot each row uses. The rows are grouped
by slot there, once, instead of in each of the several hundred LoRA layers of a forward pass. A row without an adapter
is in no group, so it costs nothing and no adapter's weights can reach it, not even as 0 * NaN.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from vllm.lora.layers import LoRAMapping
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU


@dataclass(frozen=True)
class RowGroups:
    """Rows of a batch by adapter slot. `rows` None means every row; rows without an adapter are in no group."""

    total: int
    groups: tuple[tuple[int, torch.Tensor | None], ...]


def group_rows(slots: torch.Tensor) -> RowGroups:
    """Group rows by slot; `slots` is (rows,), -1 for a row without an adapter."""
    present = slots.unique().tolist()
    if len(present) == 1 and present[0] >= 0:
        return RowGroups(len(slots), ((present[0], None),))
    return RowGroups(len(slots), tuple((s, (slots == s).nonzero().flatten()) for s in present if s >= 0))


def add_low_rank(
    y: torch.Tensor,
    x: torch.Tensor,
    a_stacked: Sequence[torch.Tensor | None],
    b_stacked: Sequence[torch.Tensor],
    widths: Sequence[int],
    rows: RowGroups,
    scale: float,
) -> None:
    """`y += scale * x @ A.T @ B.T` in place, each row with its own slot's A and B, for fused layers slice by slice.

    y is (rows, at least sum(widths)) and x (rows, in). Slice i has A (slots, 1, rank, in), B (slots, 1, out, rank)
    and takes the next widths[i] columns of y. An A of None means that x is already the product with A.
    """
    for slot, index in rows.groups:
        if index is None:
            part, inputs = y, x.to(y.dtype)
        else:
            assert len(y) == len(x) == rows.total, f"{len(y)} outputs, {len(x)} inputs, {rows.total} rows mapped"
            part, inputs = y.index_select(0, index), x.index_select(0, index).to(y.dtype)
        start = 0
        for a, b, width in zip(a_stacked, b_stacked, widths, strict=True):
            shrunk = inputs if a is None else inputs @ a[slot, 0].to(y.dtype).t()
            part.narrow(1, start, width).addmm_(shrunk, b[slot, 0, :width].to(y.dtype).t(), alpha=scale)
            start += width
        if index is not None:
            y.index_copy_(0, index, part)


class GroupedPunicaWrapper(PunicaWrapperCPU):
    """Replaces what plain, merged and embedding layers call; fully sharded adapters keep vLLM's own path."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.token_rows = RowGroups(0, ())
        self.sampler_rows = RowGroups(0, ())

    def update_metadata(
        self,
        mapping: LoRAMapping,
        lora_index_to_id: list[int | None],
        max_loras: int,
        vocab_size: int,
        **kwargs: Any,
    ) -> None:
        super().update_metadata(mapping, lora_index_to_id, max_loras, vocab_size, **kwargs)
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
        *,
        buffer: tuple[torch.Tensor, ...] | None = None,
        **kwargs: Any,
    ) -> None:
        y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        add_low_rank(y, x, lora_a_stacked, lora_b_stacked, output_slices, self.token_rows, scale)

    def add_lora_embedding(
        self, y: torch.Tensor, x: torch.Tensor, lora_b_stacked: torch.Tensor, add_inputs: bool = True, **kwargs: Any
    ) -> None:
        width = min(y.shape[-1], lora_b_stacked.shape[-2])
        if self.token_rows.groups and not add_inputs:
            y[:, :width] = 0
        add_low_rank(y, x, (None,), (lora_b_stacked,), (width,), self.token_rows, 1.0)

    def add_lora_logits(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        scale: float,
        *,
        buffer: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> None:
        y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        # Adapter and model may pad the vocabulary differently.
        width = min(y.shape[-1], lora_b_stacked.shape[-2])
        add_low_rank(y, x, (lora_a_stacked,), (lora_b_stacked,), (width,), self.sampler_rows, scale)
