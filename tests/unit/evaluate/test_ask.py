"""The guard prompts: who is asked them, how, and what a refusal comes to."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kto_ray.config import Config
from kto_ray.evaluate.ask import guard_answers
from kto_ray.evaluate.suites import GUARD_PROMPTS
from kto_ray.records.evaluation import Tokens


class Handle:
    """A Serve handle whose replica says who it is."""

    def __init__(self, error: str | None = None) -> None:
        self.generate, self.error = self, error
        self.asked: list[tuple[dict[str, Any], str]] = []

    def options(self, stream: bool) -> Handle:
        return self

    def remote(self, body: dict[str, Any], adapter: str) -> Any:
        self.asked.append((body, adapter))
        choice = {"message": {"content": adapter}, "finish_reason": "stop", "token_ids": [3]}
        told = {"error": {"message": self.error}} if self.error else {"prompt_token_ids": [1, 2], "choices": [choice]}
        return iter([json.dumps(told)])


def test_both_are_asked_the_same_with_the_same_seeds() -> None:
    config = Config()
    handle: Any = Handle()
    candidate, champion = guard_answers(config, handle, ("policy@v1", None))
    assert [a.text for a in candidate] == ["policy@v1"] * len(GUARD_PROMPTS)
    assert [a.text for a in champion] == ["policy@base"] * len(GUARD_PROMPTS)
    assert {a.tokens for a in candidate} == {Tokens((1, 2), (3,))}, "those that the engine read and said"
    assert [a.prompt for a in candidate] == [a.prompt for a in champion] == list(GUARD_PROMPTS)
    bodies = [body for body, _ in handle.asked]
    assert bodies[: len(GUARD_PROMPTS)] == bodies[len(GUARD_PROMPTS) :]
    assert {(b["temperature"], b["top_p"], b["max_tokens"]) for b in bodies} == {
        (0.6, 0.9, config.gate.guard_max_tokens)
    }
    assert len({b["seed"] for b in bodies}) == len(GUARD_PROMPTS)


def test_a_refusal_is_no_answer() -> None:
    handle: Any = Handle("the engine is gone")
    with pytest.raises(RuntimeError, match="the engine is gone"):
        guard_answers(Config(), handle, ("policy@v1", None))
