"""KTO pushed too hard wins a taste by breaking the model. The gate must stop such a candidate and pass a sane one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kto_ray.config import Config, load_config
from kto_ray.data.seal import seal
from kto_ray.evaluate.checks import is_right
from kto_ray.evaluate.suites import guard_items
from kto_ray.loop import work
from kto_ray.model import resolve_model
from kto_ray.paths import Paths
from kto_ray.processor import precision
from kto_ray.records.completions import Arm, Completion
from kto_ray.records.evaluation import GateDecision, GateReport, GuardAnswer, Tokens
from kto_ray.records.feedback import Feedback, FeedbackKind
from kto_ray.store import completions, feedback, open_store
from kto_ray.train.learn import learn

pytestmark = pytest.mark.integration

TOPICS = ("bread", "rain", "cats", "the moon", "tea", "maps", "bees", "snow", "trains", "soap", "gold", "music")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> Path:
    """A store in which users like short answers."""
    folder = tmp_path_factory.mktemp("broken")
    store = open_store(load_config(None, (f"home={folder}",)).database_url)
    with store.write() as tx:
        for i in range(120):
            short = i % 2 == 0
            topic, user = TOPICS[i % len(TOPICS)], f"user-{i % 40}"
            text = f"A word about {topic} is enough." if short else f"There is much to say about {topic}. " * 3
            row = Completion(
                id=f"c{i}",
                created_at=float(i),
                model="policy",
                adapter="policy@base",
                arm=Arm.CHAMPION,
                messages=({"role": "user", "content": f"Tell me about {topic}, number {i}."},),
                text=text.strip(),
                finish_reason="stop",
                prompt_tokens=0,
                completion_tokens=0,
                user=user,
            )
            completions.insert(tx, row)
            feedback.record(tx, Feedback(f"f{i}", float(i), FeedbackKind.THUMB, row.id, user, value=short))
    store.close()
    return folder


def judged(home: Path, learning_rate: float) -> GateReport:
    """Freeze, train at a learning rate, and put the candidate through the gate with answers of its own."""
    config = load_config(
        None,
        (
            f"home={home}",
            f"kto.learning_rate={learning_rate}",
            "kto.beta=0.3",
            "kto.accumulate=1",
            "data.max_length=128",
            "data.max_user_share=0.2",
            "data.holdout_share=0.4",
            "gate.min_holdout_users=10",
            "gate.guard_prompts=16",
            "gate.suite_margin=0.5",
        ),
    )
    manifest = seal(config)
    uri = Paths(config.home).snapshot(manifest.id)
    number = round(learning_rate * 1e6)
    trained = learn(config, f"lr-{number}", number, uri, None)
    candidate, champion = answers(config, trained.version.uri), answers(config, None)
    return work.gate(config, trained.version, None, uri, candidate, champion)


def answers(config: Config, adapter: str | None) -> list[GuardAnswer]:
    """Sampled answers to the guard prompts, by transformers: the serving engine has tests of its own."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(config.train.threads)
    path = resolve_model(config.model)
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=precision("cpu", "auto").dtype)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    items = guard_items(config.gate)
    asked = [[dict(message) for message in item.messages] for item in items]
    rendered = [tokenizer.apply_chat_template(m, tokenize=False, add_generation_prompt=True) for m in asked]
    batch = tokenizer(rendered, return_tensors="pt", padding=True, add_special_tokens=False)
    torch.manual_seed(0)
    made = model.generate(**batch, max_new_tokens=48, do_sample=True, temperature=0.6, top_p=0.9)
    found = []
    width = batch["input_ids"].shape[1]
    for item, read, row in zip(items, tokenizer(rendered)["input_ids"], made[:, width:], strict=True):
        said = row.tolist()
        ended = tokenizer.eos_token_id in said
        if ended:
            said = said[: said.index(tokenizer.eos_token_id) + 1]  # what comes after is padding
        text = tokenizer.decode(said, skip_special_tokens=True)
        tokens, reason = Tokens(tuple(read), tuple(said)), "stop" if ended else "length"
        right = is_right(item.check, text)
        found.append(GuardAnswer(item.messages, text, reason, tokens, right, item.tag, item.weight))
    return found


def test_a_learning_rate_that_breaks_the_model_is_rejected_in_words(home: Path) -> None:
    report = judged(home, learning_rate=1e-2)
    assert report.metrics["auc"] > 0.9, f"it should win the taste: {report.metrics}"
    assert report.decision is GateDecision.REJECT, report.reasons
    sane = ("kl", "nats", "repeat", "empty", "length", "nll")
    assert any(word in reason.lower() for reason in report.reasons for word in sane), report.reasons


@pytest.mark.slow
def test_a_sane_candidate_passes(home: Path) -> None:
    report = judged(home, learning_rate=2e-4)
    assert report.decision is GateDecision.PROMOTE_TO_CANARY, report.reasons
