"""Who asks the guard prompts, and at which temperature: a candidate and its champion, through the serving engine."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable

from ray.serve.handle import DeploymentHandle

from kto_ray.config import Config
from kto_ray.evaluate.checks import is_right
from kto_ray.evaluate.suites import Item, guard_items
from kto_ray.records.evaluation import GuardAnswer, Tokens

SAMPLING = {"temperature": 0.6, "top_p": 0.9}
LATER = 1  # vLLM's priority; users' requests have 0, for the gateway takes none from a client, and lower comes first


def guard_answers(
    config: Config, policy: DeploymentHandle, names: tuple[str, str | None]
) -> tuple[list[GuardAnswer], list[GuardAnswer]]:
    """Ask the serving engine the guard prompts, of the candidate and of the champion (None: the base model).

    They go straight to a replica: they are no user's traffic, so nothing is logged and no arm counts them. They wait
    behind all that users ask, and few are under way at once: what runs already is not interrupted, and shares the
    processor.
    """
    handle = policy.options(stream=True)
    asked, items = [], guard_items(config.gate)
    for name in names:
        for seed, item in enumerate(items):
            body = {
                "messages": [dict(message) for message in item.messages],
                "max_tokens": config.gate.guard_max_tokens,
                "seed": seed,
                "return_token_ids": True,
                "priority": LATER,
                **SAMPLING,
            }
            asked.append((item, body, name or config.base_name))
    answers: list[GuardAnswer] = []
    under_way: deque[tuple[Item, Iterable[str]]] = deque()
    for item, body, name in asked:
        if len(under_way) == config.gate.guard_at_once:
            answers.append(_answer(*under_way.popleft()))
        under_way.append((item, handle.generate.remote(body, name)))
    answers += [_answer(item, events) for item, events in under_way]
    half = len(answers) // 2
    return answers[:half], answers[half:]


def _answer(item: Item, events: Iterable[str]) -> GuardAnswer:
    response = json.loads(next(iter(events)))
    if "error" in response:
        raise RuntimeError(f"a guard prompt failed: {response['error']['message']}")
    choice = response["choices"][0]
    said = choice["message"]["content"] or ""
    tokens = Tokens(tuple(response["prompt_token_ids"]), tuple(choice["token_ids"]))
    right = is_right(item.check, said)
    return GuardAnswer(item.messages, said, choice["finish_reason"], tokens, right, item.tag, item.weight)
