"""The one stand-in of the engine, without a model: as the gateway sees it (`StandIn` answers as `Policy.generate`
does), as a replica does (`adapter_engine`), and as one of a cluster's replicas does (`speaking_engine`)."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from types import SimpleNamespace
from typing import Any
from zlib import crc32

from ray.exceptions import RayActorError

WORDS = ("The", " sky", " is", " blue", ".")
PROMPT = [200, 49_000, 7, 7, 7, 7, 7]  # token ids, whose bytes are no text


class StandIn:
    """Answers with `words`, or calls functions where `calls` names some with their arguments.

    What is to go wrong is set by a test: `dies` counts the replicas that die before their first event, `breaks_after`
    the events of a stream after which one dies, `refusal` is what the engine refuses with (`refuses` times, where that
    is set), `fault` what it fails with, `silent` says that it ends without an event, `pause_s` passes before each event
    and `ends_s` before the end, and after `stalls_after` events nothing comes any more. `stopped` counts the answers
    that were given up before their end."""

    def __init__(self, words: tuple[str, ...] = WORDS) -> None:
        self.words = words
        self.prompt_ids, self.word_ids = PROMPT, [[number] for number in range(len(words))]
        self.asked: list[tuple[dict[str, Any], str]] = []
        self.dies = 0
        self.breaks_after: int | None = None
        self.refusal: dict[str, Any] | None = None
        self.refuses = -1
        self.pause_s = self.ends_s = 0.0
        self.calls: tuple[tuple[str, str], ...] = ()
        self.finish_reason = "stop"
        self.fault: Exception | None = None
        self.silent = False
        self.stalls_after: int | None = None
        self.stopped = 0

    async def generate(
        self, body: Mapping[str, Any], adapter: str, everywhere: bool = False
    ) -> AsyncGenerator[str, None]:
        try:
            async for event in self._answer(body, adapter):
                yield event
        except (asyncio.CancelledError, GeneratorExit):
            self.stopped += 1
            raise

    async def _answer(self, body: Mapping[str, Any], adapter: str) -> AsyncIterator[str]:
        self.asked.append((dict(body), adapter))
        if self.fault is not None:
            raise self.fault
        if self.silent:
            return
        if self.stalls_after == 0:
            await asyncio.Event().wait()
        if self.dies:
            self.dies -= 1
            raise RayActorError
        if self.refusal is not None and self.refuses:
            self.refuses -= 1
            yield json.dumps({"error": self.refusal})
        elif body.get("stream"):
            async for event in self._stream(body, adapter):
                yield event
        else:
            message = {"role": "assistant", "content": "".join(self.words), "tool_calls": self._called()}
            choice = {"message": message, "finish_reason": self.finish_reason}
            told = self._response(body, adapter, choice, whole=True)
            if body.get("return_token_ids"):
                told["prompt_token_ids"] = self.prompt_ids
                told["choices"][0]["token_ids"] = [token for ids in self.word_ids for token in ids]
            yield json.dumps(told)
        await asyncio.sleep(self.ends_s)

    async def _stream(self, body: Mapping[str, Any], adapter: str) -> AsyncIterator[str]:
        for number, word in enumerate(self.words):
            if number == self.breaks_after:
                raise RayActorError
            if number == self.stalls_after:
                await asyncio.Event().wait()
            await asyncio.sleep(self.pause_s)
            told = self._response(body, adapter, {"delta": {"content": word}, "finish_reason": None})
            if body.get("return_token_ids"):
                told["choices"][0]["token_ids"] = self.word_ids[number]
                told |= {} if number else {"prompt_token_ids": self.prompt_ids}
            yield self._event(told)
        for number, call in enumerate(self._called()):
            delta = {"tool_calls": [{"index": number, **call}]}
            yield self._event(self._response(body, adapter, {"delta": delta, "finish_reason": None}))
        yield self._event(self._response(body, adapter, {"delta": {}, "finish_reason": self.finish_reason}))
        if (body.get("stream_options") or {}).get("include_usage"):
            yield self._event({**self._response(body, adapter, None), "usage": self._usage()})
        yield "data: [DONE]\n\n"

    def _response(
        self, body: Mapping[str, Any], adapter: str, choice: dict[str, Any] | None, whole: bool = False
    ) -> dict[str, Any]:
        kind = "chat.completion" if whole else "chat.completion.chunk"
        choices = [] if choice is None else [{"index": 0, **choice}]
        told = {"id": body["request_id"], "object": kind, "created": 1, "model": adapter, "choices": choices}
        return {**told, "usage": self._usage()} if whole else told

    def _called(self) -> list[dict[str, Any]]:
        return [
            {"id": f"call-{number}", "type": "function", "function": {"name": name, "arguments": arguments}}
            for number, (name, arguments) in enumerate(self.calls)
        ]

    def _usage(self) -> dict[str, int]:
        return {"prompt_tokens": 7, "completion_tokens": len(self.words), "total_tokens": 7 + len(self.words)}

    def _event(self, told: Mapping[str, Any]) -> str:
        return f"data: {json.dumps(told)}\n\n"


def adapter_engine(refuses: tuple[str, ...] = ()) -> Any:
    """Ray's engine with our two calls, `AdapterEngine`, but for what computes: it holds names and answers "Hi".

    Args:
        refuses: adapters that it does not load.

    What goes wrong besides is set by a test: `fault` is what it fails with at a chat, `load_s` passes at each load.
    """
    from ray.serve.llm.openai_api_models import ChatCompletionRequest, ChatCompletionResponse  # with vLLM: 10 s

    from kto_ray.serve.policy.engine import AdapterEngine

    class Engine(AdapterEngine):
        def __init__(self) -> None:
            self.held: dict[str, str] = {}
            self.refuses = refuses
            self.fault: Exception | None = None
            self.load_s = 0.0
            self._engine_client = SimpleNamespace(errored=False)

        async def load_adapter(self, name: str, directory: str) -> None:
            await asyncio.sleep(self.load_s)
            if name in self.refuses:
                raise ValueError(f"{name} is not of this model")
            self.held[name] = directory

        async def unload_adapter(self, name: str) -> None:
            del self.held[name]

        async def chat(self, request: ChatCompletionRequest, *_: Any) -> AsyncIterator[ChatCompletionResponse]:
            if self.fault is not None:
                raise self.fault
            choice = {"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            yield ChatCompletionResponse(model=request.model, choices=[choice], usage=usage)

    return Engine()


PACE_S = 0.5  # between two words of one that speaks
LOAD_S = 3.0  # that its start takes
TALE = (
    "Rain",
    " falls",
    " on",
    " the",
    " hill",
    ",",
    " and",
    " the",
    " river",
    " carries",
    " it",
    " to",
    " the",
    " sea",
)


def speaking_engine() -> Any:
    """The class of an engine that a cluster's replicas run, `AdapterEngine` but for what computes: "12 s" in a message
    has it speak for as long. Its tokens are those of the model's tokenizer, so that they can be trained on."""
    from ray.serve.llm.openai_api_models import ChatCompletionRequest, ChatCompletionResponse

    from kto_ray.serve.policy.engine import AdapterEngine

    class Speaking(AdapterEngine):
        async def start(self) -> None:
            from transformers import AutoTokenizer

            await asyncio.sleep(LOAD_S)
            self.held: dict[str, str] = {}
            self._engine_client = SimpleNamespace(errored=False)
            self.tokenizer = AutoTokenizer.from_pretrained(self.llm_config.get_engine_config().actual_hf_model_id)

        async def check_health(self) -> None:
            pass

        async def load_adapter(self, name: str, directory: str) -> None:
            self.held[name] = directory

        async def unload_adapter(self, name: str) -> None:
            del self.held[name]

        async def chat(self, request: ChatCompletionRequest, *_: Any) -> AsyncIterator[str | ChatCompletionResponse]:
            body = request.model_dump()
            asked, seconds = body["messages"], _seconds(body["messages"][-1]["content"])
            speaker = StandIn(_words(asked[-1]["content"], int(seconds / PACE_S) if request.stream else 0))
            template = self.tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
            speaker.prompt_ids, *speaker.word_ids = (self._ids(text) for text in (template, *speaker.words))
            speaker.pause_s = seconds / len(speaker.words) if request.stream else 0
            await asyncio.sleep(0 if request.stream else seconds)
            async for event in speaker.generate(body, request.model):
                yield event if request.stream else ChatCompletionResponse(**json.loads(event))

        def _ids(self, text: str) -> list[int]:
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    return Speaking


def _seconds(question: str) -> float:
    found = re.search(r"(\d+) s\b", question)
    return float(found[1]) if found else 0.0


def _words(question: str, number: int) -> tuple[str, ...]:
    """A piece of a tale; which one hangs on the question, so that not all answers are near duplicates."""
    begin = crc32(question.encode()) % 1000
    return tuple(TALE[(begin + i * (1 + begin % 5)) % len(TALE)] for i in range(max(number, 5 + begin % 7)))
