"""LoRA for vLLM on a CPU: two small products a layer, whatever the batch holds (see `cpu` for why and how it is
installed).

A wrapper belongs to a model and is told before a forward pass which adapter slot each row uses. The rows are grouped
by slot there, once, instead of in each of the several hundred LoRA layers of a forward pass. A row without an adapter
is in no group, so no adapter's weights can reach it, not even as 0 * NaN.

At the few rows of a decoding step a product costs what its call costs. vLLM's own layers call oneDNN with weights that
were laid out for it before; so do these, which takes half the time of torch's. Few rows of several adapters are one
product with the weights of all of them, and what is not of a row's own adapter is set to zero in between. And each line
of Python counts that a layer runs.

To lay out what was loaded takes as long as a forward pass or two, and chats wait meanwhile: so each pass lays out a few
layers, and the others multiply with the weights as they lie until it is their turn.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from vllm import _custom_ops as ops
from vllm.lora.model_manager import LoRAModelManager
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

FEW = 64  # rows of a batch that take the weights of all its adapters at once
NARROW = 512  # ranks of these adapters together, beyond which that would be dear
LAY_OUT_S = 0.004  # of a forward pass; what it begins, it ends
SHAPES = 32  # numbers of rows for which oneDNN keeps its plans, as vLLM's own layers have it

T = TypeVar("T")
Product = Callable[[torch.Tensor], torch.Tensor]
Products = tuple[Product, Product]  # with A, then with B

vllm_activate = LoRAModelManager.activate_adapter


@dataclass(frozen=True)
class RowGroups:
    """Rows of a batch by adapter slot. `rows` None means every row; rows without an adapter are in no group."""

    total: int
    groups: tuple[tuple[int, torch.Tensor | None], ...]
    slots: torch.Tensor | None = field(default=None, compare=False)
    masks: dict[tuple[tuple[int, ...], int], torch.Tensor] = field(default_factory=dict, compare=False)

    def foreign(self, slots: tuple[int, ...], ranks: int) -> torch.Tensor:
        """(rows, len(slots) * ranks): which columns are not of a row's own slot."""
        key = slots, ranks
        if key not in self.masks:
            assert self.slots is not None
            self.masks[key] = self.slots[:, None] != torch.tensor(slots).repeat_interleave(ranks)
        return self.masks[key]


def group_rows(slots: torch.Tensor) -> RowGroups:
    """Group rows by slot; `slots` is (rows,), -1 for a row without an adapter."""
    present = sorted(set(slots.tolist()))
    if len(present) == 1 and present[0] >= 0:
        return RowGroups(len(slots), ((present[0], None),))
    return RowGroups(len(slots), tuple((s, (slots == s).nonzero().flatten()) for s in present if s >= 0), slots.clone())


def fused(
    a_stacked: tuple[torch.Tensor, ...], b_stacked: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """A (slots, ranks, in) and B (slots, out, ranks) of a layer; the slices of a fused layer (q, k, v; gate, up) become
    one.

    A slice has A (slots, 1, rank, in) and B (slots, 1, out, rank). A's are stacked and B's put on a block diagonal, so
    that two products serve all slices. vLLM loads an adapter by writing into the slices' own tensors, which therefore
    become views of the fused ones.
    """
    if len(a_stacked) == 1:
        return a_stacked[0].squeeze(1), b_stacked[0].squeeze(1)
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
        return a_all, b_all


def product(weights: torch.Tensor) -> Product:
    """x (rows, in) -> x @ weights.T, with a copy of the weights (out, in) that is laid out for it."""
    try:
        handler = ops.create_onednn_mm(weights.contiguous().t(), SHAPES)
    except RuntimeError:  # not for this dtype on this processor: vLLM's own layers fall back likewise
        kept = weights.clone().t()
        return lambda x: x @ kept
    call = torch.ops._C.onednn_mm.default

    def times(x: torch.Tensor) -> torch.Tensor:
        """As `ops.onednn_mm`, whose own lines take as long as a small product does."""
        y = x.new_empty(len(x), handler.n)
        call(y, x, None, handler.handler_tensor)
        return y

    return times


class Spare:
    """The time of a forward pass that laying out weights may take."""

    def __init__(self) -> None:
        self.left_s = LAY_OUT_S

    def renew(self) -> None:
        self.left_s = LAY_OUT_S

    def spend(self, work: Callable[[], T]) -> T | None:
        """What `work` gives; None where no time is left in this pass."""
        if self.left_s <= 0:
            return None
        began = time.perf_counter()
        done = work()
        self.left_s -= time.perf_counter() - began
        return done


class Layer:
    """The adapters of a layer, A (slots, ranks, in) and B (slots, out, ranks), as products in the model's dtype."""

    def __init__(self, a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype, spare: Spare) -> None:
        self.a, self.b, self.dtype = a, b, dtype
        self.slots, self.ranks, _ = a.shape
        self._spare = spare
        self._made: dict[tuple[int, ...], Products] = {}
        self._holds: dict[int, tuple[bool, bool]] = {}

    def loaded(self, slot: int) -> None:
        """Other weights were written there."""
        self._made = {slots: products for slots, products in self._made.items() if slot not in slots}
        self._holds.pop(slot, None)

    def holds(self, slot: int) -> tuple[bool, bool]:
        """Whether there are weights in a slot (vLLM leaves zeros for a layer that an adapter does not change), and
        whether they are finite."""
        if slot not in self._holds:
            a, b = self.a[slot], self.b[slot]
            self._holds[slot] = bool(b.any()), bool(a.isfinite().all() and b.isfinite().all())
        return self._holds[slot]

    def together(self, slots: tuple[int, ...]) -> bool:
        """Whether one product may serve rows of all of them: not where that is dear, or 0 times a weight is not 0."""
        return len(slots) * self.ranks <= NARROW and all(self.holds(slot)[1] for slot in slots)

    def products(self, slots: tuple[int, ...]) -> Products | None:
        """With A and B of these slots side by side; None until they are laid out."""
        if slots not in self._made and (made := self._spare.spend(lambda: self._lay_out(slots))) is not None:
            if len(self._made) == 2 * self.slots:  # sets of adapters that meet in a batch are few, but for an attacker
                self._made.clear()
            self._made[slots] = made
        return self._made.get(slots)

    def _lay_out(self, slots: tuple[int, ...]) -> Products:
        of = list(slots)
        a, b = self.a[of].flatten(0, 1), self.b[of].transpose(0, 1).flatten(1)
        return product(a.to(self.dtype)), product(b.to(self.dtype))

    def _as_they_lie(self, slot: int) -> Products:
        a, b = self.a[slot].to(self.dtype), self.b[slot].to(self.dtype)
        return lambda x: x @ a.t(), lambda x: x @ b.t()

    def add(self, y: torch.Tensor, x: torch.Tensor, rows: RowGroups, scale: float) -> None:
        """`y += scale * x @ A.T @ B.T` in place, each row with its own slot's. y is (rows, out), x (rows, in)."""
        groups = [group for group in rows.groups if self.holds(group[0])[0]]
        if not groups:
            return
        x = x.to(self.dtype)
        if y.shape[1] > self.b.shape[1]:  # model and adapter may pad the vocabulary differently
            y = y.narrow(1, 0, self.b.shape[1])
        slots = tuple(slot for slot, _ in groups)
        alone = groups[0][1] is None
        assert alone or len(y) == len(x) == rows.total, f"{len(y)} outputs, {len(x)} inputs, {rows.total} rows mapped"
        if (alone or (rows.total <= FEW and self.together(slots))) and (products := self.products(slots)):
            down, up = products
            shrunk = down(x)
            if not alone:
                shrunk.masked_fill_(rows.foreign(slots, self.ranks), 0)  # what overflowed there, too
            delta = up(shrunk)
            y.add_(delta if delta.shape == y.shape else delta[:, : y.shape[1]], alpha=scale)
            return
        for slot, index in groups:
            down, up = self.products((slot,)) or self._as_they_lie(slot)
            if index is None:
                y.add_(up(down(x))[:, : y.shape[1]], alpha=scale)
            else:
                y.index_add_(0, index, up(down(x.index_select(0, index)))[:, : y.shape[1]], alpha=scale)


class GroupedPunicaWrapper(PunicaWrapperCPU):  # type: ignore[misc]  # vLLM is not followed by mypy
    """Replaces what linear, embedding and logits layers call; fully sharded adapters keep vLLM's own path."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.token_rows = RowGroups(0, ())
        self.sampler_rows = RowGroups(0, ())
        self.spare = Spare()
        self.layers: dict[torch.Tensor, Layer] = {}  # by the layer's first B; tensors compare by identity here

    def loaded(self, slot: int) -> None:
        """An adapter was written into a slot."""
        for layer in self.layers.values():
            layer.loaded(slot)

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
        for wrapper in manager.punica_wrapper_mapping.values():
            wrapper.spare.renew()
        if written:
            for layer in manager.modules.values():
                # Torch finds a module's own modules only after all else has failed, and a layer asks for this one
                # eight times a step: that takes as long as its two products of a few rows.
                vars(layer)["base_layer"] = layer.base_layer
        if written and lora_id in manager.lora_index_to_id:
            slot = manager.lora_index_to_id.index(lora_id)
            for wrapper in manager.punica_wrapper_mapping.values():
                wrapper.loaded(slot)
