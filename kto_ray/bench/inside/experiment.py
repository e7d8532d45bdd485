"""What runs in that process: the trainers side by side, the scores, the samples (`bench/experiment.py` asks for it)."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from types import MethodType
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, set_seed
from trl import DPOConfig, DPOTrainer, KTOTrainer, SFTConfig, SFTTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer

from kto_ray.bench.experiment import Found, Work
from kto_ray.bench.own_process import answer
from kto_ray.bench.sealed_rows import (
    Memory,
    Row,
    as_said,
    job_of,
    sealed,
)
from kto_ray.config import Config
from kto_ray.data.balance import balance
from kto_ray.data.tokens import encode
from kto_ray.model import resolve_model
from kto_ray.train.batches import RowBatches
from kto_ray.train.kto import attention_of, kto_arguments, lora_config, policy
from kto_ray.train.step import LossTerms, score
from kto_ray.train.trainer import RowTrainer

SCORED_TOKENS = 2048  # padded tokens of a forward that only scores
ANSWERED = 32  # prompts of a sampling batch
SIMPO_MARGIN = 0.5  # SimPO's gamma over its beta, of the 0.3 to 1 that its paper advises (arXiv:2405.14734)

Ids = tuple[list[int], list[int]]  # prompt, answer


def run(config: Config, work: Work) -> Found:
    """Train, score, answer: what `work` asks for."""
    torch.set_num_threads(config.train.threads)
    path = resolve_model(config.model)
    tokenizer: Any = AutoTokenizer.from_pretrained(path, revision=config.model.revision)
    with tempfile.TemporaryDirectory() as folder:
        set_seed(config.data.seed)
        began = time.perf_counter()
        model, steps = _trained(config, work, path, tokenizer, folder)
        train_s = time.perf_counter() - began
    if work.save:
        model.save_pretrained(work.save, selected_adapters=["default"])
    model.eval()
    asked = [list(messages) for messages in work.ask]
    answers = _answers(model, tokenizer, asked, work.max_tokens, config.data.seed)
    given = [_answer_ids(tokenizer, m, *answer) for m, answer in zip(asked, answers, strict=True)]
    judged = [_ids(tokenizer, row, config.data.max_length) for row in work.judge]

    with model.disable_adapter():
        answer_base = _logps(model, given)
    return Found(
        train_s=train_s,
        losses=[step["loss"] for step in steps],
        grad_norms=[step["grad_norm"] for step in steps],
        policy=_logps(model, judged),
        answer_policy=_logps(model, given),
        answer_base=answer_base,
        answers=answers,
        answer_tokens=[len(ids[1]) for ids in given],
    )


# ---- the trainers


class Concave(RowTrainer):
    """KTO with the value function of DPO: -log sigmoid, concave everywhere, in place of -sigmoid."""

    def loss_terms(self, logps: Tensor, reference: Tensor, kl: Tensor, label: Tensor) -> LossTerms:
        ratios = logps - reference
        sign = torch.where(label, 1.0, -1.0)
        weight = torch.where(label, self.desirable_weight, self.undesirable_weight)
        losses = -weight * torch.nn.functional.logsigmoid(self.beta * sign * (ratios - kl))
        return LossTerms(losses.mean(), self.beta * ratios.detach())


def _trained(config: Config, work: Work, path: str, tokenizer: Any, folder: str) -> tuple[Any, list[Row]]:
    """The model with its adapter, and the trainer's log of each step."""
    job = job_of(config, 0, (1.0, 1.0), folder)
    if work.method == "none":
        if work.start is None:
            how = {"revision": config.model.revision, "dtype": job.dtype, **attention_of(job)}
            base = AutoModelForCausalLM.from_pretrained(path, **how)
            return get_peft_model(base, lora_config(job)), []
        return policy(job, path, work.start)[0], []
    kto = config.kto
    texts, rows = sealed(config, work.train, tokenizer)
    up = sum(row["label"] for row in texts)
    weights = balance(up, len(texts) - up, kto.loss_aversion)
    job = job_of(config, len(texts), (weights.desirable_weight, weights.undesirable_weight), folder)
    steps = kto.epochs * -(-len(texts) // (kto.micro_batch * kto.accumulate))
    arguments = kto_arguments(job, f"{folder}/out", steps)
    model, fresh = policy(job, path, work.start)
    common = {"model": model, "processing_class": tokenizer, "peft_config": fresh}
    trainer: Any
    if work.method in ("kto", "concave"):
        one_row = Dataset.from_dict({"prompt_ids": [[0]], "completion_ids": [[0]], "label": [True]})
        batches = RowBatches(Memory(rows), len(texts), kto.micro_batch, rank=0, world=1)
        ours = RowTrainer if work.method == "kto" else Concave
        trainer = ours(job, batches, train_dataset=one_row, args=arguments, **common)
    elif work.method == "trl_kto":
        trainer = KTOTrainer(train_dataset=Dataset.from_list(texts), args=arguments, **common)
        trainer.train_dataset = as_said(trainer.train_dataset, tokenizer)
    else:
        trainer = _peer(config, work, texts, arguments, common)
    trainer.job = job  # whose warm-up all follow
    trainer.create_scheduler = MethodType(RowTrainer.create_scheduler, trainer)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer.model, [entry for entry in trainer.state.log_history if "loss" in entry]


def _peer(config: Config, work: Work, texts: list[Row], arguments: Any, common: dict[str, Any]) -> Any:
    """SFT on the desirable rows, DPO or SimPO on the pairs: as many steps as KTO, half of its rows (a pair a row) in
    each."""
    shared = (
        "output_dir", "model_init_kwargs", "use_cpu", "bf16", "gradient_checkpointing", "max_length", "max_steps",
        "gradient_accumulation_steps", "learning_rate", "max_grad_norm", "seed", "logging_steps", "save_strategy",
        "report_to", "disable_tqdm",
    )  # fmt: skip
    settings = {name: getattr(arguments, name) for name in shared}
    settings["per_device_train_batch_size"] = config.kto.micro_batch // 2
    if work.method == "sft":
        liked = [{"prompt": row["prompt"], "completion": row["completion"]} for row in texts if row["label"]]
        return SFTTrainer(train_dataset=Dataset.from_list(liked), args=SFTConfig(**settings), **common)
    sides: dict[str, dict[bool, Row]] = {}
    for row in texts:
        sides.setdefault(row["conversation"], {})[row["label"]] = row
    pairs = [
        {"prompt": pair[True]["prompt"], "chosen": pair[True]["completion"], "rejected": pair[False]["completion"]}
        for pair in sides.values()
        if len(pair) == 2
    ]
    beta = config.kto.beta
    if work.method == "dpo":
        dpo = DPOConfig(beta=beta, **settings)
        return DPOTrainer(train_dataset=Dataset.from_list(pairs), args=dpo, **common)
    simpo = CPOConfig(loss_type="simpo", cpo_alpha=0.0, beta=beta, simpo_gamma=SIMPO_MARGIN * beta, **settings)
    said = Dataset.from_list([_as_text(pair, common["processing_class"]) for pair in pairs])
    return CPOTrainer(train_dataset=said, args=simpo, **common)


def _as_text(pair: Row, tokenizer: Any) -> Row:
    """A pair as the engine would say it. Of messages TRL's trainer would make a second end of turn, after what the
    template puts behind the first; and SimPO's reward is a mean over an answer's tokens."""
    sides = {name: pair[name][0]["content"] + tokenizer.eos_token for name in ("chosen", "rejected")}
    return {
        "prompt": tokenizer.apply_chat_template(pair["prompt"], tokenize=False, add_generation_prompt=True),
        **sides,
    }


# ---- scores


def _ids(tokenizer: Any, row: Row, max_length: int) -> Ids:
    ids = encode(tokenizer, row["prompt"], row["completion"][0]["content"])
    assert ids is not None and len(ids[0]) < max_length, "rows that cannot be judged were left out before"
    return ids[0], ids[1][: max_length - len(ids[0])]


def _answer_ids(tokenizer: Any, messages: Sequence[Any], text: str, finish_reason: str) -> Ids:
    prompt, answer = encode(tokenizer, messages, text, ended=finish_reason == "stop") or ([], [])
    return prompt, answer


def _logps(model: PeftModel, pairs: Sequence[Ids]) -> list[float]:
    """Sums of log p(answer token), in nats, like lengths together."""
    sums = [0.0] * len(pairs)
    order = sorted((i for i, (_, answer) in enumerate(pairs) if answer), key=lambda i: len(pairs[i][0] + pairs[i][1]))
    while order:
        width = len(pairs[order[-1]][0]) + len(pairs[order[-1]][1])
        batch = order[-max(1, SCORED_TOKENS // width) :]
        del order[-len(batch) :]
        ids = torch.zeros((len(batch), width), dtype=torch.long)
        for row, i in enumerate(batch):
            whole = pairs[i][0] + pairs[i][1]
            ids[row, : len(whole)] = torch.tensor(whole)
        prompt_len = torch.tensor([len(pairs[i][0]) for i in batch])
        length = prompt_len + torch.tensor([len(pairs[i][1]) for i in batch])
        with torch.no_grad():
            scores, _ = score(model.get_base_model(), ids, prompt_len, length)
        for i, value in zip(batch, scores.tolist(), strict=True):
            sums[i] = value
    return sums


# ---- answers


def _answers(
    model: Any, tokenizer: Any, asked: Sequence[list[Any]], max_tokens: int, seed: int
) -> list[tuple[str, str]]:
    """(text, finish_reason) of a sampled answer to each prompt."""
    torch.manual_seed(seed)
    tokenizer.padding_side = "left"
    given: list[tuple[str, str]] = []
    for start in range(0, len(asked), ANSWERED):
        batch = asked[start : start + ANSWERED]
        inputs = tokenizer.apply_chat_template(
            batch,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
            padding=True,
        )
        with torch.no_grad():
            out = model.generate(
                **inputs, do_sample=True, temperature=0.6, top_p=0.9, max_new_tokens=max_tokens, use_cache=True
            )
        for ids in out[:, inputs["input_ids"].shape[1] :].tolist():
            ended = tokenizer.eos_token_id in ids
            text = ids[: ids.index(tokenizer.eos_token_id)] if ended else ids
            given.append((tokenizer.decode(text, skip_special_tokens=True).strip(), "stop" if ended else "length"))
    return given


if __name__ == "__main__":
    answer(lambda asked: asdict(run(Config.model_validate(asked["config"]), Work(**asked["work"]))))
