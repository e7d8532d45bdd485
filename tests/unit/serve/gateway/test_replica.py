"""The deployment hands the app a store and the policy's handle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kto_ray.config import Config
from kto_ray.serve.gateway.replica import Gateway
from tests.support.engine import StandIn
from tests.support.local import local


class Handle:
    """A Serve handle on the stand-in."""

    def __init__(self) -> None:
        self.generate, self.streams = self, False
        self.engine = StandIn()

    def options(self, stream: bool) -> Handle:
        self.streams = stream
        return self

    def remote(self, body: Any, adapter: str) -> Any:
        return self.engine.generate(body, adapter)


def test_a_chat_goes_to_the_policy_as_a_stream(tmp_path: Path) -> None:
    handle: Any = Handle()
    ours: Any = Gateway.__mro__[1]  # inside Serve's wrapper, which only a replica can construct
    app = ours(Config(home=str(tmp_path)), handle, None).__serve_build_asgi_app__()
    with local(app) as client:
        body = {"messages": [{"role": "user", "content": "Hi"}]}
        answer = client.post("/v1/chat/completions", json=body).json()
    assert answer["choices"][0]["message"]["content"] == "The sky is blue."
    assert handle.streams and handle.engine.asked[0][1] == "policy@base"
