"""The KTO step: a micro-batch's log-probabilities in one shared forward, and the loss on them.

It computes what TRL's KTOTrainer computes (KTO, arXiv:2402.01306, equations 7 and 8; `apo_zero_unpaired`:
arXiv:2408.06266), with less work: the KL completions continue the prompts that the answers' forward has already read,
and the head sees only the positions that predict an answer's token.
"""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import DynamicCache, PreTrainedModel

HEAD_ROWS = 256  # answer tokens whose logits exist at a time
# A head that does more than h W^T: scores would be wrong.
SCALED_HEADS = (
    "final_logit_softcapping", "logit_scale", "logits_scaling", "output_multiplier", "lm_head_multiplier",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class LossTerms:
    """The step's loss and what is reported of it: B rows, all detached but `loss`. Rewards are beta * log ratio."""

    loss: Tensor  # (), the weighted mean over this worker's rows
    rewards: Tensor  # (B,)


def kto_loss(
    logps: Tensor, reference: Tensor, kl: Tensor, label: Tensor, beta: float, weights: tuple[float, float]
) -> LossTerms:
    """Equation 7 of KTO. `apo_zero_unpaired` is the same with a `kl` of zero.

    Args:
        logps: (B,) sums of log pi(answer token), in nats, with gradient.
        reference: (B,) the same under the reference policy.
        kl: () the estimate of KL(pi, reference), not negative, without gradient.
        label: (B,) whether the row is desirable.
        beta: how strongly the policy is held to the reference.
        weights: of desirable and undesirable rows.
    """
    ratios = logps - reference
    sign = torch.where(label, 1.0, -1.0)
    weight = torch.where(label, *weights)
    losses = weight * (1 - torch.sigmoid(beta * sign * (ratios - kl)))
    return LossTerms(losses.mean(), beta * ratios.detach())


def attach(model: PreTrainedModel) -> None:
    """Make `model(input_ids, **lengths)` score answers; other calls stay as they were.

    The model's own forward is replaced, rather than called past, so that wrappers (PEFT, autocast, DDP, FSDP) hold.
    Attach before PEFT wraps the model.

    Raises:
        ValueError: the model's logits are more than its head's output.
    """
    text = model.config.get_text_config()
    scaled = [name for name in SCALED_HEADS if getattr(text, name, None) not in (None, 1.0)]
    if scaled:
        raise ValueError(
            f"model {model.config.name_or_path!r} changes its logits by {', '.join(scaled)}, which the exact KTO step "
            "does not know; set train.step: trl"
        )
    original = model.forward

    def forward(self: PreTrainedModel, *args: Any, prompt_len: Tensor | None = None, **kwargs: Any) -> Any:
        return original(*args, **kwargs) if prompt_len is None else score(self, prompt_len=prompt_len, **kwargs)

    model.forward = types.MethodType(forward, model)


def score(
    model: PreTrainedModel,
    input_ids: Tensor,
    prompt_len: Tensor,
    length: Tensor,
    kl_ids: Tensor | None = None,
    kl_len: Tensor | None = None,
    **unused: None,
) -> tuple[Tensor, Tensor | None]:
    """Sums of log-probabilities, in nats, of every row's answer and, without gradient, of its KL completion.

    Args:
        model: a causal LM, not wrapped; it is called in whatever mode and adapter state it is in.
        input_ids: (B, T) prompt and answer, padded on the right, where causal attention never looks.
        prompt_len: (B,) tokens of the prompt, at least 1.
        length: (B,) tokens of prompt and answer.
        kl_ids: (B, K) another prompt's answer, padded on the right; None where the loss has no KL term.
        kl_len: (B,) tokens of it.

    Returns:
        (B,) with gradient, and (B,) without or None.
    """
    share = kl_ids is not None and shares_prompts(model)
    body, head = model.base_model, model.get_output_embeddings()
    out = body(input_ids=input_ids, use_cache=share)
    hidden = out.last_hidden_state
    columns = torch.arange(input_ids.shape[1], device=input_ids.device)
    answers = (columns >= prompt_len[:, None]) & (columns < length[:, None])
    logps = _summed(hidden[:, :-1], answers[:, 1:], input_ids[:, 1:], head)
    if kl_ids is None:
        return logps, None
    assert kl_len is not None, "KL completions come with their lengths"
    with torch.no_grad():
        if share:
            kl_hidden = _continued(body, hidden, out.past_key_values, prompt_len, kl_ids, kl_len)
        else:
            kl_hidden = _anew(body, input_ids, prompt_len, kl_ids)
        present = torch.arange(kl_ids.shape[1], device=kl_ids.device) < kl_len[:, None]
        return logps, _summed(kl_hidden, present, kl_ids, head)


def shares_prompts(model: PreTrainedModel) -> bool:
    """Whether a forward leaves whole prompts in its cache: not under gradient checkpointing (no cache is kept) and not
    where layers look at a window or keep a state."""
    text = model.config.get_text_config()
    layers = set(getattr(text, "layer_types", None) or ["full_attention"])
    windowed = getattr(text, "sliding_window", None) is not None and getattr(text, "layer_types", None) is None
    return layers == {"full_attention"} and not windowed and not (model.is_gradient_checkpointing and model.training)


def _continued(
    body: Any, hidden: Tensor, cache: DynamicCache, prompt_len: Tensor, kl_ids: Tensor, kl_len: Tensor
) -> Tensor:
    """(B, K, H) states that predict the KL completions, read on from the prompts' keys and values."""
    width = int(prompt_len.max())
    last = hidden.detach()[torch.arange(len(hidden), device=hidden.device), prompt_len - 1][:, None]
    prompts = DynamicCache()
    for index, layer in enumerate(cache.layers):
        prompts.update(layer.keys[:, :, :width].detach(), layer.values[:, :, :width].detach(), index)
    read = max(1, kl_ids.shape[1] - 1)  # never 0: sharded workers must all call the model
    steps = torch.arange(read, device=kl_ids.device)
    seen = torch.arange(width, device=kl_ids.device) < prompt_len[:, None]
    out = body(
        input_ids=kl_ids[:, :read],
        attention_mask=torch.cat([seen, steps < kl_len[:, None]], dim=1).long(),
        position_ids=prompt_len[:, None] + steps,
        past_key_values=prompts,
        use_cache=True,
    )
    return torch.cat([last, out.last_hidden_state], dim=1)[:, : kl_ids.shape[1]]


def _anew(body: Any, input_ids: Tensor, prompt_len: Tensor, kl_ids: Tensor) -> Tensor:
    """The same states from a forward of their own over prompt and KL completion."""
    rows = torch.arange(len(kl_ids), device=kl_ids.device)[:, None]
    place = prompt_len[:, None] + torch.arange(kl_ids.shape[1], device=kl_ids.device)
    width = int(prompt_len.max())
    ids = torch.zeros((len(kl_ids), width + kl_ids.shape[1]), dtype=kl_ids.dtype, device=kl_ids.device)
    ids[:, :width] = input_ids[:, :width]
    ids[rows, place] = kl_ids
    states: Tensor = body(input_ids=ids, use_cache=False).last_hidden_state
    return states[rows, place - 1]


def _summed(hidden: Tensor, chosen: Tensor, targets: Tensor, head: torch.nn.Linear) -> Tensor:
    """(B,) sums of log p(target | hidden) over the chosen places; hidden (B, L, H), chosen and targets (B, L)."""
    weight, bias = _whole(head.weight), _whole(head.bias)
    picked: Tensor = HeadLogProbs.apply(hidden[chosen], weight, bias, targets[chosen])  # type: ignore[no-untyped-call]
    sums = torch.zeros(len(hidden), dtype=picked.dtype, device=picked.device)
    return sums.index_add(0, chosen.nonzero()[:, 0], picked)


def _whole(weight: Tensor | None) -> Tensor | None:
    """A head that FSDP has not gathered, since it is tied to the embedding, is gathered here."""
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


class HeadLogProbs(torch.autograd.Function):
    """log softmax(h W^T + b)[target] of every row of h: (N, H), (V, H), (V,) or None, (N,) -> (N,) in fp32.

    The head is frozen, so the gradient of h is known as soon as the logits are: it is made with them, HEAD_ROWS rows
    at a time, and neither logits nor a second product outlive the forward.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        assert not weight.requires_grad, "the head is trained, but its gradient is not computed here"
        with torch.autocast(hidden.device.type, enabled=False):
            logps, slopes = [], []
            rows = torch.split(hidden.to(weight.dtype), HEAD_ROWS)
            for h, target in zip(rows, torch.split(targets, HEAD_ROWS), strict=True):
                logits = torch.nn.functional.linear(h, weight, bias)
                whole = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
                logps.append(whole.gather(-1, target[:, None]).squeeze(-1))
                if ctx.needs_input_grad[0]:
                    p = whole.exp_().to(weight.dtype)
                    slopes.append(weight[target].float() - p @ weight)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(torch.cat(slopes))
        ctx.dtype = hidden.dtype
        return torch.cat(logps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (slopes,) = ctx.saved_tensors
        return (grad[:, None] * slopes).to(ctx.dtype), None, None, None
