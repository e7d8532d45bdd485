"""Attention in bfloat16 on a CPU: products of whole matrices, which its matrix unit runs, a layer's weights at a time.

torch's own kernel for CPUs works through small blocks that the unit hardly serves. Transformers' "eager" is as fast as
this, but keeps every layer's weights for the backward pass; here they are made again, from the queries and keys that
are kept anyway, and key heads are not copied for the query heads that share them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

NAME = "kto_ray_cpu"


def register() -> str:
    """Make the attention known to transformers; the name that `attn_implementation` takes."""
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **unused: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: query (B, H, T, D), key and value (B, K, S, D), mask (B or 1, 1, T, S) or
    None for a causal one; gives (B, T, H, D)."""
    assert dropout == 0, "KTO trains without dropout in the base model"
    length, seen = query.shape[2], key.shape[2]
    if attention_mask is None:
        attention_mask = torch.ones(length, seen, dtype=torch.bool).tril(seen - length)[None, None]
    scaling = scaling or query.shape[-1] ** -0.5
    out: Tensor = Attention.apply(query, key, value, ~attention_mask, scaling)  # type: ignore[no-untyped-call]
    return out.transpose(1, 2), None


class Attention(torch.autograd.Function):
    """softmax(scaling * Q K^T) V over the places that are not hidden; the backward pass makes its weights anew."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor, scaling: float) -> Tensor:
        grouped = query.reshape(len(query), key.shape[1], -1, query.shape[-1]) * scaling  # (B, K, H/K * T, D)
        weights = _weights(grouped, key, hidden)
        ctx.save_for_backward(grouped, key, value, hidden)
        ctx.scaling = scaling
        return (weights @ value).view(query.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        grouped, key, value, hidden = ctx.saved_tensors
        weights = _weights(grouped, key, hidden)
        out = grad.reshape(grouped.shape)
        grad_value = weights.transpose(2, 3) @ out
        slopes = torch._softmax_backward_data(out @ value.transpose(2, 3), weights, -1, weights.dtype)
        grad_query = (slopes @ key).mul_(ctx.scaling).view(grad.shape)
        return grad_query, slopes.transpose(2, 3) @ grouped, grad_value, None, None


def _weights(grouped: Tensor, key: Tensor, hidden: Tensor) -> Tensor:
    """(B, K, H/K * T, S); hidden (B or 1, 1, T, S) is true where nothing is seen.

    A place that sees nothing, padding on the left, sees everything alike: weights of 0 / 0 would poison the rest.
    """
    scores = grouped @ key.transpose(2, 3)
    heads = scores.view(len(key), -1, *hidden.shape[2:])  # (B, H, T, S)
    return torch.softmax(heads.masked_fill_(hidden, torch.finfo(scores.dtype).min), dim=-1).view(scores.shape)
