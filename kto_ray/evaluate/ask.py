"""Who asks the guard prompts, and at which temperature: a candidate and its champion, through the serving engine."""

from __future__ import annotations

import json

from ray.serve.handle import DeploymentHandle

from kto_ray.config import Config
from kto_ray.evaluate.checks import is_right
from kto_ray.evaluate.suites import Item, guard_items
from kto_ray.records.evaluation import GuardAnswer, Tokens

SAMPLING = {"temperature": 0.6, "top_p": 0.9}
AT_ONCE = 32  # requests; all of a large suite at once would stand before what users ask


def guard_answers(
    config: Config, policy: DeploymentHandle, names: tuple[str, str | None]
) -> tuple[list[GuardAnswer], list[GuardAnswer]]:
    """Ask the serving engine the guard prompts, of the candidate and of the champion (None: the base model).

    They go straight to a replica: they are no user's traffic, so nothing is logged and no arm counts them.
    """
    handle = policy.options(stream=True)
    asked = []
    for name in names:
        for seed, item in enumerate(guard_items(config.gate)):
            body = {
                "messages": [dict(message) for message in item.messages],
                "max_tokens": config.gate.guard_max_tokens,
                "seed": seed,
                "return_token_ids": True,
                **SAMPLING,
            }
            asked.append((item, body, name or config.base_name))
    answers = []
    for start in range(0, len(asked), AT_ONCE):
        sent = [(item, handle.generate.remote(body, name)) for item, body, name in asked[start : start + AT_ONCE]]
        answers += [_answer(item, next(iter(events))) for item, events in sent]
    half = len(answers) // 2
    return answers[:half], answers[half:]


def _answer(item: Item, text: str) -> GuardAnswer:
    response = json.loads(text)
    if "error" in response:
        raise RuntimeError(f"a guard prompt failed: {response['error']['message']}")
    choice = response["choices"][0]
    said = choice["message"]["content"] or ""
    tokens = Tokens(tuple(response["prompt_token_ids"]), tuple(choice["token_ids"]))
    right = is_right(item.check, said)
    return GuardAnswer(item.messages, said, choice["finish_reason"], tokens, right, item.tag, item.weight)
