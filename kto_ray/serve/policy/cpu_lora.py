"""LoRA for vLLM on a CPU: one matrix product per adapter in the batch (see `cpu` for why and how it is installed).

A wrapper belongs to a model and is told before a forward pass which adapter slot each row uses. The rows are grouped
by slot there, once, instead of in each of the several hundred LoRA layers of a forward pass. A row without an adapter
is in no group, so it costs nothing and no adapter's weights can reach it, not even as 0 * NaN.
"""

from dataclasses import dataclass
from typing import Any

import torch
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU


@dataclass(frozen=True)
class RowGroups:
    """Rows of a batch by adapter slot. `rows` None means every row; rows without an adapter are in no group."""

    total: int
    groups: tuple[tuple[int, torch.Tensor | None], ...]


@dataclass(frozen=True)
class SlotWeights:
    """A layer's weights by slot, as views ready to multiply with: A (in, ranks) or None, and B (ranks, out)."""

    a: tuple[torch.Tensor | None, ...]
    b: tuple[torch.Tensor, ...]


def group_rows(slots: torch.Tensor) -> RowGroups:
    """Group rows by slot; `slots` is (rows,), -1 for a row without an adapter."""
    present = sorted(set(slots.tolist()))
    if len(present) == 1 and present[0] >= 0:
        return RowGroups(len(slots), ((present[0], None),))
    return RowGroups(len(slots), tuple((s, (slots == s).nonzero().flatten()) for s in present if s >= 0))


def slot_weights(a_stacked: tuple[torch.Tensor, ...], b_stacked: tuple[torch.Tensor, ...]) -> SlotWeights:
    """Views of a layer's weights; the slices of a fused layer (q, k, v; gate, up) become one A and one B.

    A slice has A (slots, 1, rank, in) and B (slots, 1, out, rank). A's are stacked and B's put on a block diagonal, so
    that two products serve all slices. vLLM loads an adapter by writing into the slices' own tensors, which therefore
    become views of the fused ones: nothing has to notice a load.
    """
    if len(a_stacked) == 1:
        a_all, b_all = a_stacked[0].squeeze(1), b_stacked[0].squeeze(1)
        return SlotWeights(tuple(a.t() for a in a_all), tuple(b.t() for b in b_all))
    # The first forward pass runs in inference mode, whose tensors cannot replace the data of ordinary ones.
    with torch.inference_mode(False):
        a_all = torch.cat(a_stacked, dim=2).squeeze(1)
        b_all = b_stacked[0].new_zeros(len(a_all), sum(b.shape[2] for b in b_stacked), a_all.shape[1])
        rank = out = 0
        for a, b in zip(a_stacked, b_stacked, strict=True):
            ranks, outs = slice(rank, rank + a.shape[2]), slice(out, out + b.shape[2])
            b_all[:, outs, ranks] = b.squeeze(1)
            a.data, b.data = a_all[:, ranks].unsqueeze(1), b_all[:, outs, ranks].unsqueeze(1)
            rank, out = ranks.stop, outs.stop
        return SlotWeights(tuple(a.t() for a in a_all), tuple(b.t() for b in b_all))


def add_low_rank(y: torch.Tensor, x: torch.Tensor, weights: SlotWeights, rows: RowGroups, scale: float) -> None:
    """`y += scale * x @ A @ B` in place, each row with its own slot's A and B. y is (rows, >= out), x (rows, in)."""
    for slot, index in rows.groups:
        a, b = weights.a[slot], weights.b[slot]
        if index is None:
            part, inputs = y, x
        else:
            assert len(y) == len(x) == rows.total, f"{len(y)} outputs, {len(x)} inputs, {rows.total} rows mapped"
            part, inputs = y.index_select(0, index), x.index_select(0, index)
        inputs = inputs.to(y.dtype)
        shrunk = inputs if a is None else inputs @ a.to(y.dtype)
        # Adapter and model may pad the vocabulary differently.
        width = min(y.shape[1], b.shape[1])
        part.narrow(1, 0, width).addmm_(shrunk, b.narrow(1, 0, width).to(y.dtype), alpha=scale)
        if index is not None:
            y.index_copy_(0, index, part)


class GroupedPunicaWrapper(PunicaWrapperCPU):  # type: ignore[misc]  # vLLM is not followed by mypy
    """Replaces what linear, embedding and logits layers call; fully sharded adapters keep vLLM's own path."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.token_rows = RowGroups(0, ())
        self.sampler_rows = RowGroups(0, ())
        self.weights: dict[torch.Tensor, SlotWeights] = {}  # by the layer's first B; tensors compare by identity here

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
        b = tuple(b.t() for b in lora_b_stacked.squeeze(1))
        if self.token_rows.groups and not add_inputs:
            y[:, : b[0].shape[1]] = 0
        add_low_rank(y, x, SlotWeights((None,) * len(b), b), self.token_rows, 1.0)

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
        weights = self.weights.get(b_stacked[0])
        if weights is None:
            weights = self.weights[b_stacked[0]] = slot_weights(a_stacked, b_stacked)
        add_low_rank(y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1]), weights, rows, scale)
