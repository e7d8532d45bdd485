"""Who asks, where a test client's headers do not reach: bytes that are no text."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import Request

from kto_ray.config import Config
from kto_ray.serve.gateway.errors import ApiError
from kto_ray.serve.gateway.principals import who_asks

SECRET = "0123456789abcdef-of-the-proxy"
CONFIG = Config.model_validate({"http": {"proxy_secret": SECRET, "proxy_user_header": "Remote-User"}})


def asked(path: str = "/", **headers: bytes) -> Request:
    raw: Any = [(name.replace("_", "-").encode(), value) for name, value in headers.items()]
    return Request({"type": "http", "method": "GET", "path": path, "headers": raw, "client": ("192.0.2.7", 1)})


def test_a_proxys_user_is_text_in_utf_8() -> None:
    who, key = who_asks(CONFIG, {}, asked(x_kto_proxy_secret=SECRET.encode(), remote_user="Zoë".encode()))
    assert (who.name, who.user("bob"), key) == ("proxy/Zoë", "proxy/Zoë", None)


@pytest.mark.parametrize("user", [b"\xff\xfe", b"a\x00b", b"a\tb", "a\u2028b".encode()])
def test_what_is_no_name_is_refused(user: bytes) -> None:
    with pytest.raises(ApiError, match="Remote-User must be set by the proxy") as told:
        who_asks(CONFIG, {}, asked(x_kto_proxy_secret=SECRET.encode(), remote_user=user))
    assert told.value.status == 401


BASIC = [b"Basic !", b"Basic \xe9", b"Basic \xff\xfe=", b"Basic 6Q==", b"Basic", b"Basic " + "½".encode()]


@pytest.mark.parametrize("path", ["/", "/api/public/scores"])
@pytest.mark.parametrize("given", [b"Bearer \xff\xfe", b"Bearer", b"\x00", b"Bearer kto_" + b"\xe9" * 80, *BASIC])
def test_a_key_that_is_no_text_is_refused(given: bytes, path: str) -> None:
    with pytest.raises(ApiError) as told:
        who_asks(CONFIG, {}, asked(path, authorization=given))
    assert told.value.status == 401
