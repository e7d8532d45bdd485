"""How often and how much at once: over HTTP, of keys, users, tokens and all."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from kto_ray.config import Config
from kto_ray.records.keys import Scope
from kto_ray.serve.gateway.whose import token_headers
from kto_ray.store import Store, keys
from tests.api.conftest import HI
from tests.conftest import FreePort
from tests.support.engine import StandIn
from tests.support.opened import SECRET, bearer, by_proxy, serving, token
from tests.support.served import served


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
