"""A proxy that authenticates, and whom it names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kto_ray.store import Store, completions
from tests.api.conftest import HI, Api
from tests.support.opened import SECRET, by_proxy, serving


@pytest.fixture
def proxied(sqlite_store: Store, tmp_path: Path) -> Iterator[Api]:
    with serving(sqlite_store, tmp_path, http={"host": "0.0.0.0", "proxy_secret": SECRET}) as api:
        yield api


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
