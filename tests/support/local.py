"""A client of the gateway's app in process, as one on this machine: what the guard lets pass without keys."""

from __future__ import annotations

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
