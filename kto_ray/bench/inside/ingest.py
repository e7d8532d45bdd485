"""The gateway of `bench ingest`, in its process: the app as it is, over an engine that answers at once."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import uvicorn

from kto_ray.config import Config
from kto_ray.records.completions import Completion
from kto_ray.serve.gateway.api import build
from kto_ray.serve.gateway.steady import steady
from kto_ray.store import open_store
from kto_ray.store.database import DOOR

SAID = "Blue light is scattered more than red, so that is what comes to us from all sides. " * 3


async def generate(body: Mapping[str, Any], adapter: str, everywhere: bool) -> AsyncGenerator[str, None]:
    message = {"role": "assistant", "content": SAID}
    yield json.dumps(
        {
            "id": body["request_id"],
            "object": "chat.completion",
            "created": 1,
            "model": adapter,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 12, "completion_tokens": 60, "total_tokens": 72},
        }
    )


def serve(config: Config, keeps: bool) -> None:
    """Until it is told to end. Without `keeps`, answers are not written: what writing adds is to be told."""
    app = build(config, open_store(config.database_url, DOOR), generate)
    if not keeps:
        app.state.door.keep = _nothing
    steady()
    uvicorn.run(app, host=config.http.host, port=config.http.port, log_level="warning", access_log=False)


async def _nothing(_: Completion) -> None:
    pass


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    serve(Config.model_validate(asked["config"]), asked["keeps"])
