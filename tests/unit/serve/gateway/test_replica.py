"""The deployment hands the app a store and the policy's handle, and stops the policy where nobody reads on."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from kto_ray.config import Config
from kto_ray.serve.gateway.replica import Gateway, split
from tests.support.engine import StandIn
from tests.support.local import local


class Handle:
    """A Serve handle on the stand-in."""

    def __init__(self) -> None:
        self.generate, self.streams, self.cancelled = self, False, 0
        self.engine = StandIn()

    def options(self, stream: bool) -> Handle:
        self.streams = stream
        return self

    def remote(self, body: Any, adapter: str, everywhere: bool) -> Any:
        return Response(self, self.engine.generate(body, adapter, everywhere))


class Response:
    """What a handle answers with: an iterator that is cancelled, not closed."""

    def __init__(self, handle: Handle, events: Any) -> None:
        self.handle, self.events = handle, events

    def __aiter__(self) -> Any:
        return self.events

    def cancel(self) -> None:
        self.handle.cancelled += 1


def a_gateway(handle: Any, tmp_path: Path) -> Any:
    ours: Any = Gateway.__mro__[1]  # inside Serve's wrapper, which only a replica can construct
    return ours(Config(home=str(tmp_path)), handle, None)


def test_a_chat_goes_to_the_policy_as_a_stream(tmp_path: Path) -> None:
    handle: Any = Handle()
    with local(asyncio.run(a_gateway(handle, tmp_path).__serve_build_asgi_app__())) as client:
        body = {"messages": [{"role": "user", "content": "Hi"}]}
        answer = client.post("/v1/chat/completions", json=body).json()
        assert client.post("/v1/chat/completions", json={**body, "stream": True}).text.endswith("[DONE]\n\n")
    assert answer["choices"][0]["message"]["content"] == "The sky is blue."
    assert handle.streams and handle.engine.asked[0][1] == "policy@base"
    assert handle.cancelled == 0, "an answer that ended is not cut off"


def test_events_that_came_together_are_taken_one_by_one() -> None:
    one, other = 'data: {"text": "a\\n\\nb"}\n\n', "data: [DONE]\n\n"
    assert split(one + other) == [one, other] and split(one) == [one]
    assert split('{"whole": 1}') == ['{"whole": 1}']


def test_an_answer_that_nobody_reads_on_is_cancelled(tmp_path: Path) -> None:
    handle = Handle()
    gateway = a_gateway(handle, tmp_path)

    async def leave() -> None:
        events = gateway._generate({"request_id": "r", "stream": True}, "policy@base", True)
        assert "The" in await anext(events)
        await events.aclose()

    asyncio.run(leave())
    assert handle.cancelled == 1
