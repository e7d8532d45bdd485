"""The adapters of a layer on a CPU: two small products, whatever the batch holds (`cpu_lora` brings them into vLLM).

At the few rows of a decoding step a product costs what its call costs. vLLM's own layers call oneDNN with weights that
were laid out for it before; so do these, which takes a quarter of the time of torch's. Few rows of several adapters all
go through the weights of each, and what is not of a row's own adapter is set to zero in between; that is one product
where these adapters have met for long enough to be worth laying out side by side, which a swap is not. And each line of
Python counts that a layer runs.

To lay out what was loaded takes as long as a forward pass, and chats wait meanwhile: so each pass lays out a few
layers, from when an adapter is loaded on, and the others multiply with the weights as they lie until it is their turn.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import torch
from vllm import _custom_ops as ops

FEW = 64  # rows of a batch that take the weights of all its adapters at once
NARROW = 512  # ranks of these adapters together, beyond which that would be dear
LAY_OUT_S = 0.006  # of a forward pass; what it begins, it ends
LASTING = 50  # forward passes of the same adapters, after which they are laid out side by side
SHAPES = 32  # numbers of rows for which oneDNN keeps its plans, as vLLM's own layers have it

T = TypeVar("T")
Product = Callable[[torch.Tensor, torch.Tensor], object]  # of x (rows, in), into (rows, out)
Products = tuple[Product, Product]  # with A, then with B
Parts = list[tuple[tuple[int, ...], Products]]  # of these slots side by side, one after another


@dataclass(frozen=True)
class RowGroups:
    """Rows of a batch by adapter slot. `rows` None means every row; rows without an adapter are in no group."""

    total: int
    groups: tuple[tuple[int, torch.Tensor | None], ...]
    slots: torch.Tensor | None = field(default=None, compare=False)
    _masks: dict[tuple[tuple[int, ...], int], torch.Tensor] = field(default_factory=dict, compare=False)
    _room: dict[tuple[str, int, int], torch.Tensor] = field(default_factory=dict, compare=False)

    @cached_property
    def few(self) -> tuple[bool, tuple[int, ...]] | None:
        """Whether they are all of one adapter, and the slots; None where they are many of several."""
        alone = self.slots is None
        return (alone, tuple(slot for slot, _ in self.groups)) if alone or self.total <= FEW else None

    def foreign(self, slots: tuple[int, ...], ranks: int) -> torch.Tensor:
        """(rows, len(slots) * ranks): which columns are not of a row's own slot."""
        key = slots, ranks
        if key not in self._masks:
            assert self.slots is not None
            self._masks[key] = self.slots[:, None] != torch.tensor(slots).repeat_interleave(ranks)
        return self._masks[key]

    def room(self, what: str, x: torch.Tensor, width: int) -> torch.Tensor:
        """(rows of x, width) of x's dtype, for what is used up within a layer: the next one has the same."""
        rows = x.shape[0]
        found = self._room.get((what, rows, width))
        if found is None or found.dtype is not x.dtype:
            found = self._room[what, rows, width] = x.new_empty(rows, width)
        return found


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
    """x -> x @ weights.T, with a copy of the weights (out, in) that is laid out for it."""
    try:
        handler = ops.create_onednn_mm(weights.contiguous().t(), SHAPES)
    except RuntimeError:  # not for this dtype on this processor: vLLM's own layers fall back likewise
        kept = weights.clone().t()
        return lambda x, into: torch.mm(x, kept, out=into)
    call = torch.ops._C.onednn_mm.default
    # As `ops.onednn_mm`, whose own lines take as long as a small product does. The handler frees what it laid out.
    return lambda x, into: call(into, x, None, handler.handler_tensor)


class Spare:
    """The time of a forward pass that laying out weights may take, and whether sets of adapters are worth it."""

    def __init__(self) -> None:
        self.left_s = LAY_OUT_S
        self.lasting = False
        self._met: Counter[tuple[int, ...]] = Counter()

    def begin(self, slots: tuple[int, ...]) -> bool:
        """A forward pass with these adapters; whether they have now met for long enough to be laid out together."""
        self.left_s = LAY_OUT_S
        self._met[slots] += 1
        self.lasting = self._met[slots] > LASTING
        return self._met[slots] == LASTING + 1

    def loaded(self, slot: int) -> None:
        self._met = Counter({slots: passes for slots, passes in self._met.items() if slot not in slots})

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
        self.wide = b.shape[1]
        self._spare = spare
        self._made: dict[tuple[int, ...], Products] = {}
        self._ready: dict[tuple[bool, tuple[int, ...]] | None, Parts] = {}
        self._holds: dict[int, tuple[bool, bool]] = {}

    def loaded(self, slot: int) -> None:
        """Other weights were written there."""
        self._made = {slots: products for slots, products in self._made.items() if slot not in slots}
        self._holds.pop(slot, None)
        self._ready.clear()

    def plan_anew(self) -> None:
        self._ready.clear()

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
        wanted = slots not in self._made and (len(slots) == 1 or self._spare.lasting)
        if wanted and (made := self._spare.spend(lambda: self._lay_out(slots))) is not None:
            if len(self._made) == 2 * self.slots:  # sets of adapters that meet in a batch are few, but for an attacker
                self._made.clear()
                self._ready.clear()
            self._made[slots] = made
        return self._made.get(slots)

    def _parts(self, rows: RowGroups) -> Parts | None:
        """All slots that hold something side by side, or else each by itself; None where that cannot be, or not yet."""
        assert rows.few is not None
        alone, present = rows.few
        slots = tuple(slot for slot in present if self.holds(slot)[0])
        if not alone and not self.together(slots):
            return None
        if not slots:
            parts: Parts = []
        elif products := self.products(slots):
            parts = [(slots, products)]
        else:
            each = [((slot,), self.products((slot,))) for slot in slots]
            parts = [(of, products) for of, products in each if products]
            if len(parts) < len(slots):
                return None
            if self._spare.lasting:  # they are to be side by side
                return parts
        self._ready[rows.few] = parts
        return parts

    def _lay_out(self, slots: tuple[int, ...]) -> Products:
        of = list(slots)
        a, b = self.a[of].flatten(0, 1), self.b[of].transpose(0, 1).flatten(1)
        return product(a.to(self.dtype)), product(b.to(self.dtype))

    def add(self, y: torch.Tensor, x: torch.Tensor, rows: RowGroups, scale: float) -> None:
        """`y += scale * x @ A.T @ B.T` in place, each row with its own slot's. y is (rows, out), x (rows, in)."""
        parts = self._ready.get(rows.few)
        if parts is None:
            parts = self._parts(rows) if rows.few else None
        if parts is None:
            self._add_by_adapter(y, x, rows, scale)
            return
        if not parts:
            return
        if x.dtype is not self.dtype:
            x = x.to(self.dtype)
        if rows.slots is not None:
            self._refuse_others(y, x, rows)
        for slots, (down, up) in parts:
            shrunk, delta = rows.room("shrunk", x, len(slots) * self.ranks), rows.room("delta", x, self.wide)
            down(x, shrunk)
            if rows.slots is not None:
                shrunk.masked_fill_(rows.foreign(slots, self.ranks), 0)  # what overflowed there, too
            up(shrunk, delta)
            self._into(y, delta, scale)

    def _add_by_adapter(self, y: torch.Tensor, x: torch.Tensor, rows: RowGroups, scale: float) -> None:
        x = x.to(self.dtype)
        for slot, index in rows.groups:
            if not self.holds(slot)[0]:
                continue
            mine = x if index is None else x.index_select(0, index)
            if products := self.products((slot,)):
                shrunk, delta = x.new_empty(len(mine), self.ranks), x.new_empty(len(mine), self.wide)
                products[0](mine, shrunk)
                products[1](shrunk, delta)
            else:
                delta = mine @ self.a[slot].to(self.dtype).t() @ self.b[slot].to(self.dtype).t()
            if index is None:
                self._into(y, delta, scale)
            else:
                self._refuse_others(y, x, rows)
                wide = min(y.shape[1], self.wide)
                y[:, :wide].index_add_(0, index, delta[:, :wide], alpha=scale)

    def _into(self, y: torch.Tensor, delta: torch.Tensor, scale: float) -> None:
        wide = y.shape[1]
        if wide == self.wide:
            y.add_(delta, alpha=scale)
        else:  # model and adapter may pad the vocabulary differently
            y[:, : self.wide].add_(delta[:, :wide], alpha=scale)

    def _refuse_others(self, y: torch.Tensor, x: torch.Tensor, rows: RowGroups) -> None:
        outputs, inputs = y.shape[0], x.shape[0]
        assert outputs == inputs == rows.total, f"{outputs} outputs, {inputs} inputs, {rows.total} rows mapped"
