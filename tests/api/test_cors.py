"""Pages of named origins may call; no other, and none by default."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError

from kto_ray.config import Config
from kto_ray.serve.gateway.api import build
from kto_ray.store import Store
from tests.api.conftest import HI, Api
from tests.support.engine import StandIn
from tests.support.local import local

PAGE = "https://chat.example"
CHAT = "/v1/chat/completions"


# What OpenAI's SDK asks for from a browser.
SDKS = "authorization,content-type,openai-beta,openai-organization,openai-project,x-stainless-lang,x-stainless-timeout"


def asks(
    origin: str, headers: str = "authorization,content-type,x-kto-user-id", method: str = "POST"
) -> dict[str, str]:
    return {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": headers,
    }


@pytest.fixture
def page(sqlite_store: Store, tmp_path: Path) -> Iterator[TestClient]:
    config = Config.model_validate({"home": str(tmp_path), "http": {"cors_origins": [PAGE]}})
    with local(build(config, sqlite_store, StandIn().generate)) as client:
        yield client


def test_a_named_page_may_call_and_read_its_errors(page: TestClient) -> None:
    assert page.options(CHAT, headers=asks(PAGE)).headers["access-control-allow-origin"] == PAGE
    for body, status in (({"messages": HI}, 200), ({}, 400)):
        answer = page.post(CHAT, json=body, headers={"Origin": PAGE})
        assert answer.status_code == status and answer.headers["access-control-allow-origin"] == PAGE
    shown = answer.headers["access-control-expose-headers"]
    assert "x-kto-completion-id" in shown and "x-kto-feedback-token" in shown, "by which the page judges"
    assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize("origin", ["https://evil.example", "http://chat.example", "null", "https://chat.example:8443"])
def test_another_page_is_refused_in_the_contracts_shape(page: TestClient, origin: str) -> None:
    answer = page.options(CHAT, headers=asks(origin))
    assert answer.status_code == 403 and answer.json()["error"]["param"] == "Origin"
    assert (
        "access-control-allow-origin" not in page.post(CHAT, json={"messages": HI}, headers={"Origin": origin}).headers
    )


def test_a_named_page_may_send_the_headers_of_its_sdk(page: TestClient) -> None:
    told = page.options(CHAT, headers={**asks(PAGE, SDKS), "Access-Control-Request-Private-Network": "true"})
    assert (told.status_code, told.headers["access-control-allow-headers"]) == (200, SDKS)
    assert told.headers["access-control-allow-private-network"] == "true"
    assert "access-control-allow-credentials" not in told.headers
    assert page.options(CHAT, headers=asks("https://evil.example", SDKS)).status_code == 403


@pytest.mark.parametrize("method", ["PUT", "post", "\xe9" * 500])
def test_a_refused_method_is_told_by_its_header(page: TestClient, method: str) -> None:
    told = page.options(CHAT, headers={k.encode(): v.encode("latin-1") for k, v in asks(PAGE, method=method).items()})
    error = told.json()["error"]
    assert (told.status_code, error["param"]) == (403, "Access-Control-Request-Method")
    assert "GET, POST, DELETE" in error["message"] and len(error["message"]) < 300


def test_no_page_may_call_by_default(api: Api) -> None:
    answer = api.client.options(CHAT, headers=asks(PAGE))
    assert answer.status_code == 403 and "access-control-allow-origin" not in answer.headers


APPS = [
    "app://obsidian.md",
    "tauri://localhost",
    "capacitor://localhost",
    "chrome-extension://abcdefghijklmnopabcdefghijklmnop",
    "vscode-webview://0a1b2c",
    "http://tauri.localhost:1420",
]


@pytest.mark.parametrize("origin", APPS)
def test_a_desktop_app_or_an_extension_may_be_named(sqlite_store: Store, tmp_path: Path, origin: str) -> None:
    config = Config.model_validate({"home": str(tmp_path), "http": {"cors_origins": [origin]}})
    with local(build(config, sqlite_store, StandIn().generate)) as client:
        assert client.options(CHAT, headers=asks(origin)).headers["access-control-allow-origin"] == origin
        assert client.post(CHAT, json={"messages": HI}, headers={"Origin": origin}).status_code == 200
        assert client.post(CHAT, json={"messages": HI}, headers={"Origin": f"{origin}.evil"}).status_code == 403


PARTS = ["*", "https://*.example", "chat.example", "https://chat.example/", "app://*", "*://localhost", "null", "app:"]
PARTS += ["https://a@chat.example", "https://chat.example?a", "https://chat.example#a", "tauri://", "APP://a b"]


@pytest.mark.parametrize("origin", PARTS)
def test_only_whole_origins_are_named(origin: str) -> None:
    with pytest.raises(ValidationError, match="cors_origins"):
        Config.model_validate({"http": {"cors_origins": [origin]}})
