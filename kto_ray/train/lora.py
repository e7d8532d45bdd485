"""A faster LoRA layer for the training step: it adds into its frozen layer's output, in one pass.

PEFT casts the input to the adapter's precision, multiplies, scales and adds, each with a buffer of its own, most of
which autograd keeps: on a CPU that takes as long as the frozen layer's own product. Here the low-rank product is
accumulated into the frozen layer's output, and one copy of the input serves all gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import LoraVariant
from torch import Tensor


def fuse(model: PeftModel) -> None:
    """Have every plain LoRA adapter of the model computed by `AddLowRank`; DoRA stays as PEFT computes it."""
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            for adapter in set(layer.lora_A) - set(layer.lora_variant):
                layer.lora_variant[adapter] = Fused()
            # The cast to the adapter's precision would be undone at once.
            layer.cast_input_dtype_enabled = any(not isinstance(v, Fused) for v in layer.lora_variant.values())


class Fused(LoraVariant):  # type: ignore[misc]  # PEFT is not typed
    """PEFT's hook for another way to compute an adapter. Nothing is ever merged in training."""

    @staticmethod
    def forward(module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **unused: Any) -> Tensor:
        dropped = module.lora_dropout[active_adapter](x)
        a, b = module.lora_A[active_adapter].weight, module.lora_B[active_adapter].weight
        added: Tensor = AddLowRank.apply(  # type: ignore[no-untyped-call]
            result, dropped, a, b, module.scaling[active_adapter]
        )
        return added


class AddLowRank(torch.autograd.Function):
    """result + scaling * x A^T B^T, written into result: (..., O), x (..., I), A (r, I), B (O, r).

    Products are taken in result's precision, gradients of A and B given in theirs (LoRA, arXiv:2106.09685, equation 3).
    """

    @staticmethod
    def forward(ctx: Any, result: Tensor, x: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).to(result.dtype)
        low_a, low_b = a.to(result.dtype), b.to(result.dtype)
        low = rows @ low_a.t()
        result.view(-1, result.shape[-1]).addmm_(low, low_b.t(), alpha=scaling)
        ctx.mark_dirty(result)
        ctx.save_for_backward(rows, low, low_a, low_b)
        ctx.scaling, ctx.dtypes, ctx.shape = scaling, (x.dtype, a.dtype, b.dtype), x.shape
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, None]:
        rows, low, a, b = ctx.saved_tensors
        of_x, of_a, of_b = ctx.dtypes
        out = grad.reshape(-1, grad.shape[-1])
        slopes = (out @ b).mul_(ctx.scaling)
        grad_x = (slopes @ a).view(ctx.shape).to(of_x) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[2]:  # a frozen adapter
            return grad, grad_x, None, None, None
        grad_a = (slopes.t() @ rows).to(of_a)
        grad_b = (low.t() @ out).t().to(of_b) * ctx.scaling
        return grad, grad_x, grad_a, grad_b, None
