"""Who asks the guard prompts, and at which temperature: a candidate and its champion, through the serving engine."""

from __future__ import annotations

import json
from typing import Any

from ray.serve.handle import DeploymentHandle

from kto_ray.config import Config
from kto_ray.evaluate.suites import guard_messages
from kto_ray.records.evaluation import GuardAnswer, Tokens

SAMPLING = {"temperature": 0.6, "top_p": 0.9}


def guard_answers(
    config: Config, policy: DeploymentHandle, names: tuple[str, str | None]
) -> tuple[list[GuardAnswer], list[GuardAnswer]]:
    """Ask the serving engine the guard prompts, of the candidate and of the champion (None: the base model).

    They go straight to a replica: they are no user's traffic, so nothing is logged and no arm counts them.
    """
    handle = policy.options(stream=True)
    asked = []
    for name in names:
        for seed, messages in enumerate(guard_messages()):
            body = {
                "messages": [dict(message) for message in messages],
                "max_tokens": config.gate.guard_max_tokens,
                "seed": seed,
                "return_token_ids": True,
                **SAMPLING,
            }
            asked.append((messages, handle.generate.remote(body, name or config.base_name)))
    answers = [_answer(messages, next(iter(events))) for messages, events in asked]
    half = len(answers) // 2
    return answers[:half], answers[half:]


def _answer(messages: tuple[Any, ...], text: str) -> GuardAnswer:
    response = json.loads(text)
    if "error" in response:
        raise RuntimeError(f"a guard prompt failed: {response['error']['message']}")
    choice = response["choices"][0]
    return GuardAnswer(
        messages,
        choice["message"]["content"] or "",
        choice["finish_reason"],
        Tokens(tuple(response["prompt_token_ids"]), tuple(choice["token_ids"])),
    )
