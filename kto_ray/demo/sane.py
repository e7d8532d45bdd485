"""Is the new champion still a sane assistant? The gate's own measures and its own rules, on fresh traffic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kto_ray.adapters import files as adapter_files
from kto_ray.cluster import cpu_compute
from kto_ray.config import Config
from kto_ray.data.tokens import Row, encode_many, load_tokenizer
from kto_ray.demo.report import Report
from kto_ray.evaluate import gate
from kto_ray.evaluate.measure import guard_metrics, text_metrics
from kto_ray.model import resolve_model
from kto_ray.people.turns import Turn
from kto_ray.records.adapters import AdapterVersion
from kto_ray.records.evaluation import GateDecision, GuardAnswer, Tokens

EXAMINED = 64  # answers of each side that are scored under the models


def not_examined(before: Sequence[Turn], after: Sequence[Turn]) -> Report:
    """Where nothing was promoted there is no new champion to examine; how the answers look is told all the same."""
    metrics = text_metrics(_answers(after)) if after else {}
    metrics |= {f"{k}_champion": v for k, v in text_metrics(_answers(before)).items()} if before else {}
    return {"sane": None, "decision": None, "reasons": [], "metrics": metrics}


def examine(config: Config, champion: Report, before: Sequence[Turn], after: Sequence[Turn]) -> Report:
    """Judge the new champion again, with what it answered to fresh users against what the base model answered before.

    What it learnt stands as the gate found it; kl, base_nll, length, repetition, empty and truncated are measured anew.

    Args:
        champion: its entry in GET /v1/adapters.
        before, after: chats with the base model and with the new champion.

    Raises:
        ValueError: there are no answers to examine, or the adapter's files are damaged.
    """
    from kto_ray.evaluate.logprobs import Scorer  # loads torch

    version = AdapterVersion(**{name: champion[name] for name in AdapterVersion.__slots__})
    with adapter_files.fetched(version, config.serve.max_lora_rank, config.adapters.signing_keys) as directory:
        scorer = Scorer(config, resolve_model(config.model), directory, None)
    tokenizer = load_tokenizer(resolve_model(config.model), config.model.revision)
    new, old = (_tokenized(tokenizer, _answers(turns[:EXAMINED])) for turns in (after, before))
    fresh = guard_metrics(scorer, new, old)
    decision, reasons = gate.decide(config.gate, {**champion["gate"]["metrics"], **fresh})
    return {
        "sane": decision is GateDecision.PROMOTE_TO_CANARY,
        "decision": decision.value,
        "reasons": list(reasons),
        "metrics": fresh,
    }


def examine_apart(config: Config, champion: Report, before: Sequence[Turn], after: Sequence[Turn]) -> Report:
    """`examine` in a Ray task, which can have the environment that a model on a CPU needs."""
    import ray

    environment = cpu_compute(config.train.threads) if config.train.device == "cpu" else {}
    task = ray.remote(num_cpus=0, runtime_env={"env_vars": environment})(examine)
    report: Report = ray.get(task.remote(config, champion, before, after))
    return report


def _answers(turns: Sequence[Turn]) -> list[GuardAnswer]:
    return [GuardAnswer(({"role": "user", "content": t.prompt},), t.answer, t.finish_reason) for t in turns]


def _tokenized(tokenizer: Any, answers: Sequence[GuardAnswer]) -> list[GuardAnswer]:
    """What a client saw is text alone."""
    rows = [Row(answer.messages, answer.text, answer.finish_reason == "stop") for answer in answers]
    return [
        replace(answer, tokens=Tokens(tuple(ids[0]), tuple(ids[1])))
        for answer, ids in zip(answers, encode_many(tokenizer, rows), strict=True)
        if ids is not None
    ]
