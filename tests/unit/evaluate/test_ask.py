"""The guard prompts: who is asked them, how, and what a refusal comes to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kto_ray.config import Config
from kto_ray.evaluate.ask import guard_answers
from kto_ray.evaluate.suites import guard_items
from kto_ray.records.evaluation import Tokens


class Handle:
    """A Serve handle whose replica says who it is."""

    def __init__(self, error: str | None = None) -> None:
        self.generate, self.error = self, error
        self.asked: list[tuple[dict[str, Any], str]] = []
        self.open = self.most = 0

    def options(self, stream: bool) -> Handle:
        return self

    def remote(self, body: dict[str, Any], adapter: str) -> Any:
        self.asked.append((body, adapter))
        self.open += 1
        self.most = max(self.most, self.open)
        choice = {"message": {"content": adapter}, "finish_reason": "stop", "token_ids": [3]}
        told = {"error": {"message": self.error}} if self.error else {"prompt_token_ids": [1, 2], "choices": [choice]}

        def answer() -> Any:
            self.open -= 1
            yield json.dumps(told)

        return answer()


def test_both_are_asked_the_same_with_the_same_seeds() -> None:
    config = Config()
    handle: Any = Handle()
    items = guard_items(config.gate)
    candidate, champion = guard_answers(config, handle, ("policy@v1", None))
    assert [a.text for a in candidate] == ["policy@v1"] * len(items)
    assert [a.text for a in champion] == ["policy@base"] * len(items)
    assert {a.tokens for a in candidate} == {Tokens((1, 2), (3,))}, "those that the engine read and said"
    assert [a.prompt for a in candidate] == [a.prompt for a in champion] == [i.messages[-1]["content"] for i in items]
    bodies = [body for body, _ in handle.asked]
    assert bodies[: len(items)] == bodies[len(items) :]
    assert [len(b["messages"]) for b in bodies[: len(items)]] == [len(i.messages) for i in items], "whole conversations"
    assert {(b["temperature"], b["top_p"], b["max_tokens"]) for b in bodies} == {
        (0.6, 0.9, config.gate.guard_max_tokens)
    }
    assert len({b["seed"] for b in bodies}) == len(items)
    assert handle.most == config.gate.guard_at_once == 4, "users' requests find room between them"
    assert {b["priority"] for b in bodies} == {1}, "behind users' requests, which have 0"


def test_every_answer_is_held_to_the_check_of_its_own_prompt(tmp_path: Path) -> None:
    suite = tmp_path / "names.yaml"
    suite.write_text("[{prompt: 'Who?', check: {any: [v1]}, weight: 3}, {prompt: 'What?', check: {any: [base]}}]")
    handle: Any = Handle()
    config = Config.model_validate({"gate": {"suites": [str(suite)], "guard_prompts": 1000}})
    candidate, champion = (
        [a for a in side if a.tag == "names"] for side in guard_answers(config, handle, ("v1", None))
    )
    assert [(a.right, a.weight) for a in candidate] == [(True, 3.0), (False, 1.0)]
    assert [a.right for a in champion] == [False, True]


def test_a_refusal_is_no_answer() -> None:
    handle: Any = Handle("the engine is gone")
    with pytest.raises(RuntimeError, match="the engine is gone"):
        guard_answers(Config(), handle, ("policy@v1", None))
