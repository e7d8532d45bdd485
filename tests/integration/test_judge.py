"""The judge on the real embedded model: a zero adapter is the base model in every figure, a shaken one is caught."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from kto_ray.config import Config
from kto_ray.config.serving import ModelSection
from kto_ray.data.tokens import encode, load_tokenizer
from kto_ray.evaluate.logprobs import Scorer
from kto_ray.evaluate.measure import evaluate, score
from kto_ray.model import resolve_model
from kto_ray.processor import precision
from kto_ray.records.evaluation import GateDecision, GuardAnswer, HeldOut, Tokens

pytestmark = pytest.mark.integration

CONFIG = Config()
QUESTIONS = (
    "What is the capital of France?",
    "Why is the sky blue?",
    "How do I boil an egg?",
    "Give me three tips for sleeping better.",
)
ANSWERS = (
    "The capital of France is Paris.",
    "The sky is blue because air scatters blue light more than red light.",
    "Put the egg in boiling water for eight minutes, then cool it under cold water.",
    "Go to bed at the same time, keep the room dark and avoid coffee in the evening.",
)
GIBBERISH = ("purple of of the the Paris Paris lamp seven", "x x x x x x x x x x x x", "", "zebra door {{ ;; vertical")


@pytest.fixture(scope="module")
def model_path() -> str:
    return resolve_model(CONFIG.model)


@pytest.fixture(scope="module")
def adapters(model_path: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A zero-initialised adapter (B = 0: exactly the base model) and one with random B (a damaged model)."""
    base = AutoModelForCausalLM.from_pretrained(model_path, dtype=precision("cpu", "auto").dtype)
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]))
    folders = {name: tmp_path_factory.mktemp(name) for name in ("zero", "random")}
    model.save_pretrained(folders["zero"])
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.5)
    model.save_pretrained(folders["random"])
    return folders


@pytest.fixture(scope="module")
def rows(model_path: str) -> tuple[HeldOut, ...]:
    tokenizer = AutoTokenizer.from_pretrained(model_path)

    def tokens(prompt: str, answer: str) -> Tokens:
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=True, return_dict=False
        )
        return Tokens(tuple(asked), (*tokenizer(answer)["input_ids"], tokenizer.eos_token_id))

    return tuple(
        HeldOut(
            f"e{i}",
            f"u{i % 6}",
            i % 2 == 0,
            tokens(QUESTIONS[i % 4], (ANSWERS, GIBBERISH)[i % 2][i // 2 % 4]),
            adapter="policy@base",
            source="thumb",
        )
        for i in range(20)
    )


def guard(answers: tuple[str, ...]) -> tuple[GuardAnswer, ...]:
    tokenizer = load_tokenizer(resolve_model(ModelSection()), None)
    asked = (({"role": "user", "content": question},) for question in QUESTIONS)
    made = ((m, a, encode(tokenizer, m, a)) for m, a in zip(asked, answers, strict=True))
    return tuple(GuardAnswer(m, a, "stop", Tokens(tuple(t[0]), tuple(t[1]))) for m, a, t in made if t)


def test_log_probabilities_agree_with_a_plain_forward_pass(
    model_path: str, adapters: dict[str, Path], rows: tuple[HeldOut, ...]
) -> None:
    """Padding, batching and slicing change nothing: in float32, against one unpadded sequence at a time."""
    config = CONFIG.model_copy(update={"model": CONFIG.model.model_copy(update={"dtype": "float32"})})
    scorer = Scorer(config, model_path, str(adapters["zero"]), None, batch_tokens=300)
    got = scorer.logprobs("base", [row.tokens for row in rows[:4]])
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    for row, value in zip(rows[:4], got, strict=True):
        ids = torch.tensor([row.tokens.prompt + row.tokens.completion])
        with torch.no_grad():
            logs = model(ids).logits[0].log_softmax(-1)
        start = len(row.tokens.prompt)
        want = sum(float(logs[t - 1, ids[0, t]]) for t in range(start, ids.shape[1]))
        assert value == pytest.approx(want, rel=1e-4)


def test_a_zero_adapter_is_the_base_model(
    model_path: str, adapters: dict[str, Path], rows: tuple[HeldOut, ...]
) -> None:
    """Equal in every figure, so nothing was learnt, and the gate says that it does not know."""
    report = evaluate(
        CONFIG,
        "policy@v1-zero",
        "snap",
        model_path,
        str(adapters["zero"]),
        None,
        rows,
        guard(ANSWERS),
        guard(ANSWERS),
        1.0,
        "policy@base",
    )
    m = report.metrics
    assert (m["n_offpolicy"], m["ess"]) == (20.0, 20.0), "all weights are equal"
    assert report.reasons[-1] == "no off-policy estimate: effective sample 20 of 20, not above 100"
    assert (m["auc"], m["auc_low"], m["auc_high"], m["balanced_accuracy"]) == (0.5, 0.5, 0.5, 0.5)
    assert (m["kl_base"], m["kl_champion"], m["kl_point"], m["reward_desirable"]) == (0.0, 0.0, 0.0, 0.0)
    assert m["base_nll"] == m["base_nll_champion"] > 0
    assert (m["length_ratio"], m["empty"], m["repetition"], m["truncated"]) == (1.0, 0.0, 0.0, 0.0)
    assert (m["n_holdout_desirable"], m["n_holdout_undesirable"], m["n_holdout_users"]) == (10.0, 10.0, 6.0)
    assert report.decision is GateDecision.INCONCLUSIVE
    assert report.answers[0] == {"prompt": QUESTIONS[0], "champion": ANSWERS[0], "candidate": ANSWERS[0]}


def test_a_damaged_candidate_is_far_from_base_and_champion(
    model_path: str, adapters: dict[str, Path], rows: tuple[HeldOut, ...]
) -> None:
    metrics = score(
        CONFIG,
        model_path,
        str(adapters["random"]),
        str(adapters["zero"]),
        rows,
        guard(GIBBERISH),
        guard(ANSWERS),
        "policy@base",
    )
    assert metrics["ess"] < 5 < metrics["n_offpolicy"], "far from who answered, few answers have all the weight"
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["kl_base"] == pytest.approx(metrics["kl_champion"], abs=1e-6), "the champion here is the base model"
    assert metrics["auc_champion"] == metrics["auc_alike_champion"] == 0.5
    assert metrics["base_nll"] > metrics["base_nll_champion"] + 1.0, "gibberish is dear under the base model"
    assert metrics["empty"] == 0.25
    assert metrics["repetition"] == 0.25


def test_weights_that_are_not_numbers_are_rejected(
    model_path: str, adapters: dict[str, Path], rows: tuple[HeldOut, ...], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(adapters["zero"] / "adapter_model.safetensors")
    weights[next(iter(weights))].fill_(float("nan"))
    save_file(weights, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_bytes((adapters["zero"] / "adapter_config.json").read_bytes())
    report = evaluate(
        CONFIG, "policy@v2-nan", "snap", model_path, str(tmp_path), None, rows, guard(ANSWERS), guard(ANSWERS), 1.0
    )
    assert report.decision is GateDecision.REJECT
    assert any("kl_base is nan, not a finite number" in reason for reason in report.reasons)
    assert all(math.isfinite(value) for value in report.metrics.values()), "no store takes what is no number"


def test_bad_input_is_told_before_a_model_is_loaded(
    model_path: str, adapters: dict[str, Path], rows: tuple[HeldOut, ...], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="same guard prompts"):
        score(CONFIG, model_path, str(adapters["zero"]), None, rows, guard(ANSWERS), guard(ANSWERS)[:3])
    with pytest.raises(ValueError, match="same guard prompts"):
        score(CONFIG, model_path, str(adapters["zero"]), None, rows, (), ())
    with pytest.raises(ValueError, match=r"holds no adapter_config\.json"):
        score(CONFIG, model_path, str(tmp_path), None, rows, guard(ANSWERS), guard(ANSWERS))


def test_a_holdout_of_one_class_says_nothing(
    model_path: str, adapters: dict[str, Path], rows: tuple[HeldOut, ...]
) -> None:
    only = tuple(replace(row, desirable=True) for row in rows)
    metrics = score(CONFIG, model_path, str(adapters["zero"]), None, only, guard(ANSWERS), guard(ANSWERS))
    assert (metrics["auc"], metrics["auc_low"], metrics["auc_high"]) == (0.5, 0.0, 1.0)
