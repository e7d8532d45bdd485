"""Top-p on a CPU without sorting the vocabulary (see `cpu` for how it is installed).

vLLM sorts each row of logits whole, 49,152 tokens of the embedded model, at every step: as long as half of its forward
pass. The tokens that top-p keeps are few, so the largest are looked at first, and more only of rows that ask for more.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from vllm.v1.sample.ops import topk_topp_sampler

LOOKED_AT = (64, 1024)  # of a row's largest tokens, in turn, until their mass suffices

vllm_apply: Callable[[Tensor, Tensor | None, Tensor | None], Tensor] = topk_topp_sampler.apply_top_k_top_p


def apply_top_k_top_p(logits: Tensor, k: Tensor | None, p: Tensor | None) -> Tensor:
    """vLLM's function of this name: -inf to the logits of tokens that top-k and top-p leave out, in place.

    Args:
        logits: (rows, vocabulary), fp32.
        k: (rows,) or None; where any row asks for top-k, vLLM's own way is taken.
        p: (rows,) or None. A token stays when the tokens that are likelier hold less than p of the mass, and the
            likeliest stays in any case: fp32 has no p as small as some that are asked for, but 0.
    """
    if p is None or k is not None:
        return vllm_apply(logits, k, p)
    return _top_p(logits, logits.logsumexp(dim=-1, keepdim=True), p, LOOKED_AT)


def _top_p(logits: Tensor, total: Tensor, p: Tensor, looked_at: tuple[int, ...]) -> Tensor:
    """Top-p of rows whose log mass is `total` (rows, 1); rows that the largest tokens do not settle look at more."""
    if not looked_at:
        return vllm_apply(logits, None, p)
    values, tokens = logits.topk(min(looked_at[0], logits.shape[1]), dim=-1)
    mass = (values - total).exp()
    reached = mass.cumsum(dim=-1)
    open_rows = (reached[:, -1] < p).nonzero().flatten()
    others = logits[open_rows]
    out = reached - mass >= p[:, None]
    out[:, 0] = False
    values[out] = -torch.inf
    logits.fill_(-torch.inf).scatter_(-1, tokens, values)
    if len(open_rows):
        logits[open_rows] = _top_p(others, total[open_rows], p[open_rows], looked_at[1:])
    return logits
