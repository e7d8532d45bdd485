"""Who may pass: the table of route and scope, whole, and the keys that open it."""

from __future__ import annotations

import base64
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from kto_ray.records.keys import Scope
from kto_ray.serve.gateway.guard import TABLE, named
from kto_ray.serve.gateway.whose import token_headers
from kto_ray.store import Store, completions, keys
from tests.api.conftest import HI, Api
from tests.support.opened import bearer, serving, token

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


def there(app: FastAPI) -> set[str]:
    """The routes of an app, as the table names them."""
    return {
        named(method, getattr(route, "path", str(route)))
        for route in app.routes
        for method in getattr(route, "methods", None) or {"ANY"}
    }


def ask(api: Api, route: str, headers: dict[str, str]) -> Any:
    method, path = route.split(" ")
    return api.client.request(method, path.replace("{}", "1"), headers=headers)


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


@pytest.mark.parametrize("act", ["approve", "reject", "reset-budget?why=more"])
def test_only_an_admin_says_whether_a_candidate_meets_users_and_what_error_may_be_spent(
    api: Api, act: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kto_ray.serve.gateway.loop.ANSWER_S", 0.01)
    opened = {}
    for scope in Scope:
        key = token(api, scope, name=scope.value)
        opened[scope] = api.client.post(f"/v1/rollout/{act}", headers=bearer(key)).status_code
    assert opened == {**dict.fromkeys(Scope, 403), Scope.ADMIN: 202}


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
