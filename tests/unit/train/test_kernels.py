"""Our attention and our LoRA layer against torch's and PEFT's, values and gradients, in fp32."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from kto_ray.train.attention import BLOCK, attend
from kto_ray.train.lora import Fused, fuse


def attention_inputs(length: int, seen: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    shapes = [(3, 4, length, 8), (3, 2, seen, 8), (3, 2, seen, 8)]
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


def torchs(query: Any, key: Any, value: Any, mask: Any, is_causal: Any) -> Any:
    key, value = (x.repeat_interleave(2, dim=1) for x in (key, value))
    out = nn.functional.scaled_dot_product_attention(query, key, value, mask, is_causal=is_causal)
    return out.transpose(1, 2)


@pytest.mark.parametrize("case", ["causal", "causal, in blocks", "masked"])
def test_attention_is_torchs(case: Any) -> None:
    length, seen = {"causal": (9, 9), "causal, in blocks": (2 * BLOCK + 9,) * 2, "masked": (5, 12)}[case]
    mask = None
    if case == "masked":  # a cache of 7, of which rows see a part
        past = torch.arange(7) < torch.tensor([7, 3, 1])[:, None]
        mask = torch.cat([past[:, None].expand(-1, length, -1), torch.ones(3, 5, 5).tril().bool()], dim=2)[:, None]
    inputs = attention_inputs(length, seen)
    slope = torch.randn(3, length, 4, 8)
    query, key, value = inputs
    ours, _ = attend(nn.Module(), query, key, value, mask)
    theirs = torchs(query, key, value, mask, mask is None)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(
        torch.autograd.grad((ours * slope).sum(), inputs),
        torch.autograd.grad((theirs * slope).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_a_token_read_after_a_cache_sees_all_of_it() -> None:
    query, key, value = attention_inputs(1, 6)
    torch.testing.assert_close(attend(nn.Module(), query, key, value, None)[0], torchs(query, key, value, None, False))


def test_tokens_read_after_a_cache_see_it_and_what_came_before() -> None:
    length, seen = BLOCK + 3, BLOCK + 8
    query, key, value = attention_inputs(length, seen)
    mask = torch.ones(length, seen).tril(seen - length).bool()
    torch.testing.assert_close(attend(nn.Module(), query, key, value, None)[0], torchs(query, key, value, mask, False))


def test_padding_on_the_left_stays_finite() -> None:
    inputs = attention_inputs(4, 4)
    mask = torch.ones(4, 4).tril().bool() & (torch.arange(4) >= 2)  # the first two places are padding
    query, key, value = inputs
    out, _ = attend(nn.Module(), query, key, value, mask.expand(3, 1, 4, 4))
    assert out.isfinite().all()
    torch.testing.assert_close(out[:, 2:], torchs(query, key, value, mask, False)[:, 2:])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(model_type="net", tie_word_embeddings=False)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8, bias=False)

    def forward(self, x: Any) -> Any:
        return self.down(torch.relu(self.up(x)))


def adapted(**settings: Any) -> tuple[nn.Module, torch.Tensor, dict[str, torch.Tensor]]:
    """The model, and its output and gradients for one input, before it is fused."""
    torch.manual_seed(0)
    model = get_peft_model(Net(), LoraConfig(r=4, lora_alpha=8, target_modules=["up", "down"], **settings))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight)
    return model, *outcome(model)


def outcome(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(1)
    x = torch.randn(2, 3, 8, requires_grad=True)
    model.zero_grad()
    out = model(x)
    out.square().sum().backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return out.detach(), {**grads, "x": x.grad}


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"lora_dropout": 0.5}], ids=str)
def test_a_fused_adapter_is_pefts(settings: Any) -> None:
    model, out, grads = adapted(**settings)
    fuse(model)
    fused_out, fused_grads = outcome(model)
    torch.testing.assert_close(fused_out, out)
    assert fused_grads.keys() == grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(fused_grads[name], grad, msg=name)
    torch.manual_seed(0)
    base = Net()
    with model.disable_adapter():  # type: ignore[operator]  # PEFT is not typed
        torch.testing.assert_close(outcome(model)[0], outcome(base)[0])


def test_dora_stays_pefts() -> None:
    model, out, _ = adapted(use_dora=True)
    fuse(model)
    torch.testing.assert_close(outcome(model)[0], out)
    assert not any(isinstance(v, Fused) for m in model.modules() for v in getattr(m, "lora_variant", {}).values())
