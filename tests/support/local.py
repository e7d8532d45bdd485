"""A client of the gateway's app in process, as one on this machine: what the guard lets pass without keys."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from fastapi import FastAPI
from fastapi.testclient import TestClient

# What every client of ours sends; here for requests with a hand-made body too.
OURS = {"Content-Type": "application/json", "X-Kto-Act": "1"}


def local(app: FastAPI, ours: bool = True, peer: str = "127.0.0.1") -> TestClient:
    """Args:
    ours: send the headers of our clients.
    peer: the address that requests come from.
    """
    headers = OURS if ours else None
    return TestClient(
        app,
        base_url="http://127.0.0.1:8000",
        client=(peer, 50000),
        headers=headers,
        raise_server_exceptions=False,
    )


def by_hand(app: Any, method: str, path: str, query: bytes = b"", **headers: bytes) -> tuple[int, Any]:
    """Status and JSON of a request whose bytes no HTTP client would send; `headers` with "_" for "-"."""
    told = {"host": b"127.0.0.1:8000", "content_type": b"application/json", "x_kto_act": b"1", **headers}
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query,
        "client": ("127.0.0.1", 50000),
        "headers": [(name.replace("_", "-").encode(), value) for name, value in told.items()],
    }
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], json.loads(b"".join(message.get("body", b"") for message in sent))
