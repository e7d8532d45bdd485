"""Attention on a CPU: products of whole matrices, which its matrix unit runs, a layer's weights at a time.

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
BLOCK = 64  # queries


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
    hidden = None if attention_mask is None else ~attention_mask
    scaling = scaling or query.shape[-1] ** -0.5
    out: Tensor = Attention.apply(query, key, value, hidden, scaling)  # type: ignore[no-untyped-call]
    return out.transpose(1, 2), None


class Attention(torch.autograd.Function):
    """softmax(scaling * Q K^T) V over the places that are not hidden; the backward pass makes its weights anew.

    Causal attention (`hidden` is None) goes by blocks of queries, which leave out the keys that come after them.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None, scaling: float) -> Tensor:
        grouped = query.reshape(len(query), key.shape[1], -1, *query.shape[2:]) * scaling  # (B, K, H/K, T, D)
        out = torch.empty_like(grouped)
        for rows, seen in _blocks(query.shape[2], key.shape[2], hidden):
            weights = _weights(grouped[..., rows, :], key[:, :, seen], hidden)
            out[..., rows, :] = (weights @ value[:, :, seen]).view_as(out[..., rows, :])
        ctx.save_for_backward(grouped, key, value, hidden)
        ctx.scaling = scaling
        return out.view(query.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        grouped, key, value, hidden = ctx.saved_tensors
        slopes_out = grad.reshape(grouped.shape)
        grad_query = torch.empty_like(grouped)
        # In fp32, for the blocks add up in them.
        grad_key, grad_value = (torch.zeros_like(x, dtype=torch.float32) for x in (key, value))
        for rows, seen in _blocks(grouped.shape[3], key.shape[2], hidden):
            queries, out = (x[..., rows, :].flatten(2, 3) for x in (grouped, slopes_out))
            weights = _weights(grouped[..., rows, :], key[:, :, seen], hidden)
            grad_value[:, :, seen] += weights.transpose(2, 3) @ out
            slopes = out @ value[:, :, seen].transpose(2, 3)
            slopes = torch._softmax_backward_data(slopes, weights, -1, weights.dtype)
            grad_query[..., rows, :] = (slopes @ key[:, :, seen]).view_as(grad_query[..., rows, :])
            grad_key[:, :, seen] += slopes.transpose(2, 3) @ queries
        grad_query = grad_query.mul_(ctx.scaling).view(grad.shape)
        return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype), None, None


def _blocks(length: int, seen: int, hidden: Tensor | None) -> list[tuple[slice, slice]]:
    """Which queries look at which keys: all at all where a mask hides some, else blocks at what is not later."""
    if hidden is not None:
        return [(slice(length), slice(seen))]
    blocks = [slice(low, min(low + BLOCK, length)) for low in range(0, length, BLOCK)]
    return [(rows, slice(seen - length + rows.stop)) for rows in blocks]


def _weights(grouped: Tensor, key: Tensor, hidden: Tensor | None) -> Tensor:
    """(B, K, H/K * T, S) of queries (B, K, H/K, T, D); hidden (B or 1, 1, T, S) is true where nothing is seen.

    A place that sees nothing, padding on the left, sees everything alike: weights of 0 / 0 would poison the rest.
    """
    scores = grouped.flatten(2, 3) @ key.transpose(2, 3)
    length, seen = grouped.shape[3], key.shape[2]
    heads = scores.view(len(key), -1, length, seen)  # (B, H, T, S)
    if hidden is None:
        # Only among the last keys, the queries' own, are there later ones.
        heads, hidden = heads[..., seen - length :], torch.ones(length, length, dtype=torch.bool).triu(1)
    heads.masked_fill_(hidden, torch.finfo(scores.dtype).min)
    return torch.softmax(scores, dim=-1)
