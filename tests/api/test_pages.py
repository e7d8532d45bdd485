"""Without keys this machine is answered, and no page that somebody looks at on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kto_ray.records.keys import Scope
from kto_ray.store import Store
from tests.api.conftest import Api
from tests.support.local import local
from tests.support.opened import bearer, serving, token


def attack(api: Api, method: str, path: str, headers: dict[str, str], body: str | None = None) -> Any:
    """A request with a browser's headers alone."""
    app: Any = api.client.app
    return local(app, ours=False).request(method, path, content=body, headers=headers)


CHAT = '{"messages": [{"role": "user", "content": "Hi"}]}'
THUMB = '{"completion_id": "c", "kind": "thumb", "value": true}'
PAGE = {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
ATTACKS = {
    "fetch without a preflight": ("POST", "/v1/feedback", {**PAGE, "Content-Type": "text/plain"}, THUMB),
    "the same for a chat": ("POST", "/v1/chat/completions", {**PAGE, "Content-Type": "text/plain"}, CHAT),
    "the same for an act": ("POST", "/v1/rollout/promote", {**PAGE, "Content-Type": "text/plain"}, None),
    "an old browser, which says less": ("POST", "/v1/rollout/promote", {}, None),
    "an old browser's form": ("POST", "/v1/feedback", {"Content-Type": "text/plain"}, THUMB),
    "a form": (
        "POST",
        "/v1/loop/run",
        {**PAGE, "Sec-Fetch-Mode": "navigate", "Content-Type": "application/x-www-form-urlencoded"},
        "a=b",
    ),
    "a form from a file or a frame": ("POST", "/v1/loop/run", {"Origin": "null"}, None),
    "a rebound name, reading": ("GET", "/v1/lineage/ann", {"Host": "evil.example:8000"}, None),
    "a rebound name, acting": (
        "POST",
        "/v1/rollout/promote",
        {"Host": "evil.example:8000", "Origin": "http://evil.example:8000", "X-Kto-Act": "1"},
        None,
    ),
    "a name that begins like ours": ("GET", "/v1/loop", {"Host": "127.0.0.1.evil.example"}, None),
    "a name that ends like ours": ("GET", "/v1/loop", {"Host": "evil.localhost"}, None),
    "no name": ("GET", "/v1/loop", {"Host": ""}, None),
    "a script tag": ("GET", "/v1/loop", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, None),
    "another port's page": (
        "POST",
        "/v1/feedback",
        {"Origin": "http://127.0.0.1:3000", "Sec-Fetch-Site": "same-site", "Content-Type": "application/json"},
        THUMB,
    ),
    "a preflight": (
        "OPTIONS",
        "/v1/rollout/promote",
        {**PAGE, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-kto-act"},
        None,
    ),
    "a withdrawal": ("DELETE", "/v1/feedback/fb-1", {}, None),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_page_gets_nowhere(api: Api, name: str) -> None:
    answer = attack(api, *ATTACKS[name])
    assert answer.status_code in (403, 415), answer.text
    assert answer.json()["error"]["type"] in ("invalid_request_error", "permission_error")
    assert "access-control-allow-origin" not in answer.headers
    assert api.engine.asked == []
    with api.store.read() as tx:
        assert tx.exec_driver_sql("SELECT count(*) FROM requests").scalar_one() == 0
        assert tx.exec_driver_sql("SELECT count(*) FROM feedback").scalar_one() == 0


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:8000", "LOCALHOST", "[::1]:8000", "127.0.0.1"])
def test_this_machine_is_answered_by_any_of_its_names(api: Api, host: str) -> None:
    page = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
    assert attack(api, "GET", "/v1/loop", {"Host": host}).status_code == 200
    json = {"Content-Type": "application/json; charset=utf-8"}
    assert attack(api, "POST", "/v1/chat/completions", {**page, **json}, CHAT).status_code == 200


@pytest.mark.parametrize("peer", ["192.0.2.7", "10.0.0.1", "::ffff:192.0.2.7", "testclient"])
def test_another_machine_is_not_answered_whatever_it_calls_us(api: Api, peer: str) -> None:
    app: Any = api.client.app
    client = local(app, peer=peer)
    assert client.get("/v1/loop").status_code == 403
    assert client.get("/healthz").status_code == 200


def test_beyond_loopback_nobody_is_answered_before_there_is_a_key(sqlite_store: Store, tmp_path: Path) -> None:
    with serving(sqlite_store, tmp_path, http={"host": "0.0.0.0"}) as api:
        told = api.client.get("/v1/models")
        assert told.status_code == 401 and "kto-ray keys create" in told.json()["error"]["message"]
        assert api.client.get("/v1/models", headers=bearer(token(api, Scope.CHAT))).status_code == 200


def test_a_page_that_the_config_names_may_ask(sqlite_store: Store, tmp_path: Path) -> None:
    origin = "https://chat.example"
    with serving(sqlite_store, tmp_path, http={"cors_origins": [origin]}) as api:
        page = {"Origin": origin, "Sec-Fetch-Site": "cross-site", "Content-Type": "application/json"}
        answer = attack(api, "POST", "/v1/chat/completions", page, CHAT)
        assert answer.status_code == 200
        other = attack(api, "POST", "/v1/chat/completions", {**page, "Origin": "https://evil.example"}, CHAT)
        assert other.status_code == 403 and "http.cors_origins" in other.json()["error"]["message"]
