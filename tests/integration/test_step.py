"""The exact step against TRL's own KTOTrainer: same weights, rows, order and seed, 20 steps in fp32, through TRL's data
preparation on one side and ours on the other. The model is a small random Llama with the embedded model's tokenizer."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from vllm.config.lora import LoRAConfig
from vllm.lora.peft_helper import PEFTHelper

from kto_ray.adapters.files import read_sound
from kto_ray.config import Config
from kto_ray.model import resolve_model
from kto_ray.train import attention, kto
from kto_ray.train import trainer as trainer_module
from kto_ray.train.kto import lora_config, policy
from kto_ray.train.reference import fingerprint
from kto_ray.train.step import attach, kto_loss
from kto_ray.train.trainer import RowTrainer
from tests.support.steps import STEPS, Run, job, ours, trls

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(resolve_model(Config().model))


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> str:
    folder = str(tmp_path_factory.mktemp("tiny"))
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=len(tokenizer), num_key_value_heads=2, initializer_range=0.2, tie_word_embeddings=True, **shape
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def furthest(one: list[float], other: list[float]) -> float:
    assert len(one) == len(other) == STEPS
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def furthest_grad(one: Run, other: Run) -> float:
    """The largest relative distance of a LoRA matrix's gradient in any step; those that are zero on both sides (the
    first step's, of the A matrices) are equal."""
    distances = [0.0]
    for a, b in zip(one.grads, other.grads, strict=True):
        assert a.keys() == b.keys() and a
        distances += [float((a[n] - b[n]).norm() / b[n].norm()) for n in a if b[n].norm() > 0 or a[n].norm() > 0]
    return max(distances)


@pytest.fixture(scope="module")
def peer(model_path: Any, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return {
        t: trls(model_path, tokenizer, tmp_path_factory.mktemp(t), loss_type=t) for t in ("kto", "apo_zero_unpaired")
    }


@pytest.mark.parametrize("loss_type", ["kto", "apo_zero_unpaired"])
def test_twenty_steps_are_trls(loss_type: str, peer: Any, model_path: Any, tokenizer: Any, tmp_path: Path) -> None:
    own, trl = ours(model_path, tokenizer, tmp_path, loss_type=loss_type), peer[loss_type]
    assert furthest(own.loss, trl.loss) < 1e-5
    assert furthest(own.kl, trl.kl) < 1e-4
    assert furthest(own.chosen, trl.chosen) < 1e-4
    assert furthest(own.rejected, trl.rejected) < 1e-4
    assert furthest_grad(own, trl) < 1e-4
    assert own.tokens == trl.tokens
    if loss_type == "kto":
        assert max(trl.kl) > 0.01, "the KL term never mattered, so the test would not see it missing"


def test_with_our_attention_they_are_trls_too(
    peer: Any, model_path: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kto, "attention_of", lambda job: {"attn_implementation": attention.register()})
    called: list[int] = []
    weights = attention._weights

    def counted(*given: Any) -> Any:
        called.append(1)
        return weights(*given)

    monkeypatch.setattr(attention, "_weights", counted)
    own = ours(model_path, tokenizer, tmp_path)
    assert called, "the model came with another attention"
    assert furthest(own.loss, peer["kto"].loss) < 1e-5
    assert furthest(own.kl, peer["kto"].kl) < 1e-4
    # AdamW's first step is a gradient's sign, and where that is nearly zero another order of additions turns it.
    first_own, first_trl = (replace(run, grads=run.grads[:1]) for run in (own, peer["kto"]))
    assert furthest_grad(first_own, first_trl) < 1e-4
    assert furthest_grad(own, peer["kto"]) < 1e-3


def test_under_gradient_checkpointing_the_kl_term_is_the_same(
    peer: Any, model_path: Any, tokenizer: Any, tmp_path: Path
) -> None:
    own = ours(model_path, tokenizer, tmp_path, gradient_checkpointing=True)
    assert furthest(own.loss, peer["kto"].loss) < 1e-5
    assert furthest(own.kl, peer["kto"].kl) < 1e-4
    assert furthest_grad(own, peer["kto"]) < 1e-4


def test_from_a_champion_the_reference_is_the_champion(model_path: Any, tokenizer: Any, tmp_path: Path) -> None:
    """TRL keeps a frozen copy of the adapter that it is given; so do we, and a base reference would differ."""
    ours(model_path, tokenizer, tmp_path)
    champion = str(tmp_path / "trained")
    own = ours(model_path, tokenizer, tmp_path / "next", start=champion)
    trl = trls(model_path, tokenizer, tmp_path / "next", start=champion)
    assert own.chosen[0] == own.rejected[0] == 0, "policy and reference start as one"
    assert furthest(own.loss, trl.loss) < 1e-5
    assert furthest(own.kl, trl.kl) < 1e-4
    assert furthest_grad(own, trl) < 1e-4
    folder = tmp_path / "next" / "trained"
    assert (
        load_file(folder / "adapter_model.safetensors").keys()
        == load_file(f"{champion}/adapter_model.safetensors").keys()
    )


def test_a_champion_of_another_shape_is_refused(model_path: Any, tokenizer: Any, tmp_path: Path) -> None:
    ours(model_path, tokenizer, tmp_path)
    this = job(tmp_path, "exact")
    wider = dataclasses.replace(this, kto=this.kto.model_copy(update={"rank": 4}))
    with pytest.raises(ValueError, match=r"has rank 16 .* kto.rank is 4 .*kto.reference: base"):
        policy(wider, model_path, str(tmp_path / "trained"))


def test_a_second_run_computes_no_reference_again(
    model_path: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ours(model_path, tokenizer, tmp_path)
    (folder,) = (tmp_path / "references").iterdir()
    (file,) = folder.iterdir()
    assert file.name == "r-0.parquet"

    def never(*arguments: Any) -> None:
        raise AssertionError("the reference was computed again")

    monkeypatch.setattr(RowTrainer, "_reference", never)
    again = ours(model_path, tokenizer, tmp_path)
    assert again.loss == first.loss
    assert again.kl == first.kl


def test_another_base_model_or_precision_has_another_cache(model_path: Any) -> None:
    model = LlamaForCausalLM.from_pretrained(model_path)
    names = [fingerprint(model, "float32", 2), fingerprint(model, "bfloat16", 2), fingerprint(model, "float32", 1)]
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] += 1e-3
    names.append(fingerprint(model, "float32", 2))
    assert len(set(names)) == 4


def test_a_head_that_scales_its_logits_is_refused(model_path: Any) -> None:
    model = LlamaForCausalLM.from_pretrained(model_path)
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(ValueError, match=r"final_logit_softcapping.*train.step: trl"):
        attach(model)


@pytest.mark.parametrize("option", ["rslora", "dora"])
def test_vllm_serves_rslora_and_no_dora(option: Any, model_path: Any, tmp_path: Path) -> None:
    """What the config refuses and allows is what vLLM says of the adapters that come out."""
    this = job(tmp_path, "exact")
    this = replace(this, kto=this.kto.model_copy(update={option: True}))
    model = get_peft_model(LlamaForCausalLM.from_pretrained(model_path), lora_config(this))
    model.save_pretrained(tmp_path / "adapter")
    saved = read_sound(str(tmp_path / "adapter"), 16)
    helper = PEFTHelper.from_dict(json.loads(saved.config))
    if option == "dora":
        with pytest.raises(ValueError, match="DoRA"):
            helper.validate_legal(LoRAConfig(max_lora_rank=16))
    else:
        helper.validate_legal(LoRAConfig(max_lora_rank=16))
        assert helper.vllm_lora_scaling_factor == pytest.approx(this.kto.alpha / this.kto.rank**0.5)


def no_kl(logps: Any, reference: Any, kl: Any, *rest: Any) -> Any:
    return REAL_LOSS(logps, reference, kl * 0, *rest)


def no_reference(logps: Any, reference: Any, *rest: Any) -> Any:
    return REAL_LOSS(logps, reference + 0.01, *rest)


def no_weights(logps: Any, reference: Any, kl: Any, label: Any, beta: Any, weights: Any) -> Any:
    return REAL_LOSS(logps, reference, kl, label, beta, (1.0, 1.0))


REAL_LOSS = kto_loss


@pytest.mark.parametrize("broken", [no_kl, no_reference, no_weights], ids=lambda f: f.__name__)
def test_the_comparison_sees_a_wrong_term(
    broken: Any, peer: Any, model_path: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_module, "kto_loss", broken)
    own = ours(model_path, tokenizer, tmp_path, loss_type="kto")
    assert furthest(own.loss, peer["kto"].loss) > 1e-5
