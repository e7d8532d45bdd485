"""Who may pass: the table of route and scope, whole; the proxy; and without keys, pages that try to ask."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from kto_ray.config import Config
from kto_ray.records.keys import Scope
from kto_ray.serve.gateway.api import build
from kto_ray.serve.gateway.guard import TABLE, named
from kto_ray.serve.gateway.whose import token_headers
from kto_ray.store import Store, completions, keys
from tests.api.conftest import HI, Api
from tests.conftest import FreePort
from tests.support.engine import StandIn
from tests.support.local import local
from tests.support.served import served

# Written again, not read from the guard: this is what each scope opens.
WHO: dict[str, set[str]] = {
    "POST /v1/chat/completions": {"chat"},
    "POST /v1/completions": {"chat"},
    "POST /v1/responses": {"chat"},
    "GET /v1/models": {"chat"},
    "GET /v1/models/{}": {"chat"},
    "POST /v1/feedback": {"feedback", "reviewer"},
    "DELETE /v1/feedback/{}": {"feedback", "reviewer"},
    "GET /v1/feedback/held": {"admin"},
    "POST /v1/feedback/{}/{}": {"admin"},
    "POST /feedback": {"feedback", "reviewer"},
    "POST /api/public/ingestion": {"feedback", "reviewer"},
    "POST /api/public/scores": {"feedback", "reviewer"},
    "DELETE /api/public/scores/{}": {"feedback", "reviewer"},
    "GET /v1/completions/{}": {"admin"},
    "GET /v1/lineage/{}": {"admin"},
    "GET /v1/loop": {"admin"},
    "GET /v1/loop/rounds/{}": {"admin"},
    "POST /v1/loop/run": {"admin"},
    "POST /v1/loop/abort": {"admin"},
    "GET /v1/adapters": {"admin"},
    "GET /v1/rollout": {"admin"},
    "POST /v1/rollout/{}": {"admin"},
    "DELETE /v1/users/{}": {"admin"},
    "DELETE /v1/completions/{}": {"admin"},
    "GET /metrics": {"admin"},
    "GET /openapi.json": {"admin"},
    "GET /healthz": {"anyone"},
    "GET /readyz": {"anyone"},
}
SECRET = "0123456789abcdef-of-the-proxy"


def there(app: FastAPI) -> set[str]:
    """The routes of an app, as the table names them."""
    return {
        named(method, getattr(route, "path", str(route)))
        for route in app.routes
        for method in getattr(route, "methods", None) or {"ANY"}
    }


def token(api: Api, *scopes: Scope, name: str = "app", vouches: bool = False) -> str:
    with api.store.write() as tx:
        _, made = keys.create(tx, name, scopes, vouches, api.config.salt, time.time())
    api.door.viewer.refresh()
    return made


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def ask(api: Api, route: str, headers: dict[str, str]) -> Any:
    method, path = route.split(" ")
    return api.client.request(method, path.replace("{}", "1"), headers=headers)


@contextmanager
def serving(store: Store, folder: Path, **settings: Any) -> Iterator[Api]:
    config = Config.model_validate({"home": str(folder), **settings})
    engine = StandIn()
    app = build(config, store, engine.generate)
    with local(app) as client:
        yield Api(client, store, engine, config, app.state.door)


# ---- the table


def test_every_route_stands_in_the_table(api: Api) -> None:
    app: Any = api.client.app
    assert there(app) <= set(TABLE)
    assert set(TABLE) == set(WHO)


@pytest.mark.parametrize("scope", Scope)
def test_a_scope_opens_its_routes_and_no_other(api: Api, scope: Scope, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kto_ray.serve.gateway.loop.ANSWER_S", 0.01)
    key = token(api, scope)
    app: Any = api.client.app
    for route in sorted(there(app)):
        answer = ask(api, route, bearer(key))
        if WHO[route] & {scope.value, "anyone"}:
            assert answer.status_code not in (401, 403), (route, answer.text)
        else:
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (403, "insufficient_scope"), (route, answer.text)
            assert all(word in error["message"] for word in WHO[route])


def test_without_a_key_every_route_is_closed_once_there_are_keys(api: Api) -> None:
    app: Any = api.client.app
    assert api.client.get("/v1/loop").status_code == 200, "no key was ever made"
    token(api, Scope.CHAT)
    for headers in ({}, bearer("none"), bearer("kto_000000000000_" + "0" * 64), {"Authorization": "Basic eDp5"}):
        for route in [*sorted(there(app)), "GET /nowhere"]:
            answer = ask(api, route, headers)
            if "anyone" in WHO.get(route, set()):
                assert answer.status_code in (200, 503)
                continue
            assert answer.status_code == 401, (route, answer.text)
            assert answer.headers["www-authenticate"].startswith("Bearer")
            assert answer.json()["error"]["code"] == "invalid_api_key"


def test_a_route_that_is_not_in_the_table_is_closed_to_everybody(sqlite_store: Store, tmp_path: Path) -> None:
    with serving(sqlite_store, tmp_path) as api:
        app: Any = api.client.app
        app.add_api_route("/v1/forgotten", lambda: "open")
        assert there(app) - set(TABLE) == {"GET /v1/forgotten"}
        assert api.client.get("/v1/forgotten").status_code == 403
        key = token(api, *Scope)
        assert api.client.get("/v1/forgotten", headers=bearer(key)).status_code == 403


def test_what_does_not_exist_is_told_to_whoever_has_a_key(api: Api) -> None:
    key = token(api, Scope.CHAT)
    assert api.client.get("/nowhere", headers=bearer(key)).status_code == 404
    assert api.client.put("/v1/models", headers=bearer(key)).status_code == 405


# ---- keys


def test_a_revoked_key_stops_and_the_last_one_opens_nothing(api: Api) -> None:
    key = token(api, Scope.CHAT)
    assert api.client.get("/v1/models", headers=bearer(key)).status_code == 200
    with api.store.write() as tx:
        keys.revoke(tx, key.split("_")[1], time.time())
    deadline = time.monotonic() + 10
    while api.client.get("/v1/models", headers=bearer(key)).status_code == 200:  # by the view's own refresh
        assert time.monotonic() < deadline
    told = api.client.get("/v1/models", headers=bearer(key))
    assert told.status_code == 401 and "revoked" in told.json()["error"]["message"]
    assert api.client.get("/v1/models").status_code == 401, "not open again"


def test_a_feedback_token_ends_with_the_key_that_asked(api: Api) -> None:
    key, other = (token(api, Scope.CHAT, name=name) for name in ("app", "other"))
    thumb = {"kind": "thumb", "value": True}

    def judge(answer: Any) -> Any:
        told = {"X-Kto-Feedback-Token": answer.headers["x-kto-feedback-token"]}
        return api.client.post("/v1/feedback", json=thumb, headers=told)

    chats = [api.client.post("/v1/chat/completions", json={"messages": HI}, headers=bearer(k)) for k in (key, other)]
    assert judge(chats[0]).status_code == 201
    with api.store.write() as tx:
        keys.revoke(tx, key.split("_")[1], time.time())
    api.door.viewer.refresh()
    told = judge(chats[0])
    assert (told.status_code, told.json()["error"]["code"]) == (401, "invalid_feedback_token")
    assert "revoked" in told.json()["error"]["message"]
    assert judge(chats[1]).status_code == 201
    gone = token_headers(api.config, "c1", "app", "app", "000000000000")
    assert api.client.post("/v1/feedback", json=thumb, headers=gone).status_code == 401


@pytest.mark.parametrize(("vouches", "user"), [(True, "app/ann"), (False, "app")])
def test_a_user_is_one_of_the_keys_principal(api: Api, vouches: bool, user: str) -> None:
    key = token(api, Scope.CHAT, vouches=vouches)
    body = {"messages": HI, "user": "ann"}
    told = api.client.post("/v1/chat/completions", json=body, headers=bearer(key)).json()
    with api.store.read() as tx:
        row = completions.get(tx, told["id"])
    assert row is not None and row.user == user


def test_langfuses_clients_send_the_key_as_a_password(api: Api) -> None:
    key = token(api, Scope.FEEDBACK)

    def basic(password: str) -> dict[str, str]:
        return {"Authorization": "Basic " + base64.b64encode(f"pk:{password}".encode()).decode()}

    assert api.client.delete("/api/public/scores/1", headers=basic(key)).status_code not in (401, 403)
    assert api.client.delete("/api/public/scores/1", headers=basic("wrong")).status_code == 401
    assert api.client.post("/v1/feedback", json={}, headers=basic(key)).status_code == 401, "nowhere else"


def test_a_feedback_token_passes_to_the_route_that_reads_it(api: Api) -> None:
    """Whoever received an answer has no key; the route says whether the token is good."""
    token(api, Scope.CHAT)
    thumb, told = {"completion_id": "c", "kind": "thumb", "value": True}, {"X-Kto-Feedback-Token": "any"}
    assert api.client.post("/v1/feedback", json=thumb).json()["error"]["code"] == "invalid_api_key"
    refused = api.client.post("/v1/feedback", json=thumb, headers=told)
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_feedback_token")
    form = api.client.post("/v1/feedback", content="{}", headers={**told, "Content-Type": "text/plain"})
    assert form.status_code == 415
    for method, path in (("POST", "/v1/chat/completions"), ("DELETE", "/v1/feedback/1"), ("GET", "/v1/loop")):
        assert api.client.request(method, path, headers=told).status_code == 401


def test_a_key_needs_no_header_for_acts(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kto_ray.serve.gateway.loop.ANSWER_S", 0.01)
    key = token(api, Scope.ADMIN)
    del api.client.headers["X-Kto-Act"]
    assert api.client.post("/v1/rollout/pause", headers=bearer(key)).status_code == 202


def test_strangers_learn_that_it_is_ready_and_nothing_of_its_hosts(api: Api) -> None:
    api.holding("policy@v1")
    assert api.client.get("/readyz").json()["replicas"] != [], "without keys whoever asks is at this machine"
    key = token(api, Scope.ADMIN)
    told = api.client.get("/readyz").json()
    assert (told["ready"], told["replicas"], told["champion"]) == (True, [], "policy@base")
    assert api.client.get("/readyz", headers=bearer(key)).json()["replicas"][0]["node"] == "node"


# ---- a proxy


@pytest.fixture
def proxied(sqlite_store: Store, tmp_path: Path) -> Iterator[Api]:
    with serving(sqlite_store, tmp_path, http={"host": "0.0.0.0", "proxy_secret": SECRET}) as api:
        yield api


def by_proxy(user: str | None = "ann", secret: str = SECRET) -> dict[str, str]:
    return {"X-Kto-Proxy-Secret": secret, **({"X-Forwarded-User": user} if user is not None else {})}


def test_a_proxys_user_is_whom_it_names_whatever_the_body_claims(proxied: Api) -> None:
    body = {"messages": HI, "user": "bob"}
    told = proxied.client.post("/v1/chat/completions", json=body, headers=by_proxy())
    assert told.status_code == 200
    with proxied.store.read() as tx:
        row = completions.get(tx, told.json()["id"])
    assert row is not None and row.user == "proxy/ann"
    assert proxied.say(told.json()["id"], user="bob").status_code == 401
    assert proxied.client.get("/v1/loop", headers=by_proxy()).status_code == 403


def test_a_proxys_user_may_have_any_letters(proxied: Api) -> None:
    headers: Any = {b"X-Kto-Proxy-Secret": SECRET.encode(), b"X-Forwarded-User": "Zoë".encode()}
    told = proxied.client.post("/v1/chat/completions", json={"messages": HI}, headers=headers).json()
    with proxied.store.read() as tx:
        row = completions.get(tx, told["id"])
    assert row is not None and row.user == "proxy/Zoë"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-Forwarded-User": "ann"},
        by_proxy(secret="0123456789abcdef-of-a-guess"),
        by_proxy(secret=""),
        by_proxy(user=None),
        by_proxy(user=""),
        by_proxy(user="a" * 191),
        [*by_proxy().items(), ("X-Forwarded-User", "bob")],
        [*by_proxy().items(), ("X-Kto-Proxy-Secret", SECRET)],
        [*by_proxy().items(), ("X-Kto-Proxy-Secret", "a-guess-of-the-client")],
    ],
)
def test_who_does_not_prove_to_be_the_proxy_is_refused(proxied: Api, headers: Any) -> None:
    assert proxied.client.get("/v1/models", headers=by_proxy()).status_code == 200
    assert proxied.client.get("/v1/models", headers=headers).status_code == 401


def test_a_page_behind_the_proxy_cannot_act_by_a_form(proxied: Api) -> None:
    """The browser sends the proxy's cookies along, so the proxy vouches for what a page of another origin sends."""
    form = {**by_proxy(), "Content-Type": "text/plain"}
    assert proxied.client.post("/v1/feedback", content="{}", headers=form).status_code == 415
    del proxied.client.headers["X-Kto-Act"]
    assert proxied.client.delete("/v1/feedback/1", headers=by_proxy()).status_code == 403


# ---- no keys: this machine, and no page


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


# ---- how much


def tries(answer: Callable[[], Any], times: int) -> list[int]:
    return [answer().status_code for _ in range(times)]


def test_a_key_that_asks_too_often_is_told_when_to_come_again(sqlite_store: Store, tmp_path: Path) -> None:
    limits = {"chats_per_minute": 3, "feedback_per_minute": 1}
    with serving(sqlite_store, tmp_path, limits=limits) as api:
        key, other = (bearer(token(api, Scope.CHAT, Scope.FEEDBACK, name=name)) for name in ("a", "b"))

        def chat(headers: dict[str, str]) -> Any:
            return api.client.post("/v1/chat/completions", json={"messages": HI}, headers=headers)

        assert tries(lambda: chat(key), 4) == [200, 200, 200, 429]
        told = chat(key)
        assert re.fullmatch(r"\d+", told.headers["retry-after"]) and 0 < int(told.headers["retry-after"]) <= 20
        assert told.json()["error"]["code"] == "rate_limit_exceeded"
        assert "limits.chats_per_minute" in told.json()["error"]["message"]
        assert chat(other).status_code == 200
        assert api.client.get("/v1/models", headers=key).status_code == 200
        thumb = {"completion_id": "c", "kind": "thumb", "value": True}
        assert tries(lambda: api.client.post("/v1/feedback", json=thumb, headers=key), 2) == [202, 429]


def test_a_user_who_asks_too_often_stops_no_other(sqlite_store: Store, tmp_path: Path) -> None:
    with serving(sqlite_store, tmp_path, limits={"chats_per_minute_of_user": 2}) as api:
        key = bearer(token(api, Scope.CHAT, vouches=True))

        def chat(user: str | None) -> Any:
            body = {"messages": HI, **({"user": user} if user else {})}
            return api.client.post("/v1/chat/completions", json=body, headers=key)

        assert tries(lambda: chat("ann"), 3) == [200, 200, 429]
        assert "'app/ann'" in chat("ann").json()["error"]["message"]
        assert chat("bob").status_code == 200
        assert tries(lambda: chat(None), 3) == [200, 200, 200], "a key's own limit is for those without a name"


def test_who_holds_a_feedback_token_is_counted_too(sqlite_store: Store, tmp_path: Path) -> None:
    """Whoever has the answer has its token, and no key that a limit could bind."""
    with serving(sqlite_store, tmp_path, limits={"feedback_per_minute_of_user": 2}) as api:

        def judge(user: str | None) -> Any:
            told = token_headers(api.config, "c1", user, "app")
            return api.client.post("/v1/feedback", json={"kind": "thumb", "value": True}, headers=told)

        assert tries(lambda: judge("app/ann"), 3) == [202, 202, 429]
        assert tries(lambda: judge("app/bob"), 1) == [202]
        assert tries(lambda: judge(None), 3) == [202, 202, 429]


@pytest.mark.parametrize("users", [("app/ann", "app/bob", "app/cy"), ("app", "app", "app"), (None, None, None)])
def test_tokens_do_not_dodge_the_limit_of_the_key_that_hands_them_out(
    sqlite_store: Store, tmp_path: Path, users: tuple[str | None, ...]
) -> None:
    with serving(sqlite_store, tmp_path, limits={"feedback_per_minute": 2}) as api:
        app, other = (bearer(token(api, Scope.FEEDBACK, name=name)) for name in ("app", "other"))

        def judge(number: int, principal: str = "app", **headers: str) -> Any:
            told = {**token_headers(api.config, f"c{number}", users[number], principal), **headers}
            return api.client.post("/v1/feedback", json={"kind": "thumb", "value": True}, headers=told)

        answers = [judge(number) for number in range(3)]
        assert [answer.status_code for answer in answers] == [202, 202, 429]
        assert "limits.feedback_per_minute)" in answers[2].json()["error"]["message"]
        assert judge(0, "another").status_code == 202
        assert judge(0, "app", **app).status_code == 429
        assert judge(1, "other", **other).status_code == 202
        assert judge(2, "other", **other).status_code == 202, "counted once, where its own key sends it"


def test_a_proxys_user_is_counted_as_one(sqlite_store: Store, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"http": {"proxy_secret": SECRET}, "limits": {"chats_per_minute_of_user": 1}}
    with serving(sqlite_store, tmp_path, **settings) as api:

        def chat(user: str) -> Any:
            return api.client.post("/v1/chat/completions", json={"messages": HI}, headers=by_proxy(user))

        assert tries(lambda: chat("ann"), 2) == [200, 429]
        assert chat("bob").status_code == 200


@pytest.mark.parametrize(("limits", "status"), [({"chats_at_once": 1}, 429), ({"chats_in_all": 1}, 503)])
def test_chats_do_not_pile_up(
    sqlite_store: Store, tmp_path: Path, free_port: FreePort, limits: dict[str, int], status: int
) -> None:
    config = Config.model_validate({"home": str(tmp_path), "http": {"port": free_port()}, "limits": limits})
    with sqlite_store.write() as tx:
        _, key = keys.create(tx, "app", [Scope.CHAT], False, config.salt, time.time())
    engine = StandIn()
    engine.pause_s = 1.0
    body = {"messages": HI, "stream": True}
    with served(config, sqlite_store, engine) as url, httpx.Client(base_url=url, headers=bearer(key)) as client:
        with client.stream("POST", "/v1/chat/completions", json=body) as first:
            refused = client.post("/v1/chat/completions", json={"messages": HI})
            assert (refused.status_code, refused.headers["retry-after"]) == (status, "1"), refused.text
            assert client.get("/v1/models").status_code == 200
            engine.pause_s = 0.0
            assert first.read().endswith(b"data: [DONE]\n\n")
        assert client.post("/v1/chat/completions", json={"messages": HI}).status_code == 200
