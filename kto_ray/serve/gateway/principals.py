"""Who asks: the key of a request, the user whom a proxy names, or where no keys are, whoever is at this machine."""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Mapping

from fastapi import Request

from kto_ray.config import Config
from kto_ray.records.keys import HERE, Key, Principal, Scope, id_of
from kto_ray.serve.gateway.errors import ApiError, short

PROXY_SECRET_HEADER = "x-kto-proxy-secret"
LONGEST_USER = 190  # of a proxy, in characters: with its principal's name it is a principal
LOCAL_PEERS = ("127.0.0.1", "::1", "::ffff:127.0.0.1")
LOCAL_HOST = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d+)?", re.ASCII | re.IGNORECASE)
CHALLENGE = {"www-authenticate": 'Bearer realm="kto_ray"'}


def who_asks(config: Config, known: Mapping[str, Key], request: Request) -> tuple[Principal, str | None]:
    """Who asks, and the public id of the key that says so, which no page has; None without one.

    Raises:
        ApiError: 401 and 403, with what is missing.
    """
    token = _token(request)
    public = id_of(token) if token is not None else None
    if token is not None and public is not None and known:
        key = known.get(public)
        if key is None or not key.opens(config.salt, token):
            raise _unknown("this API key does not exist, or was revoked")
        return key.principal, key.id
    if config.http.proxy_secret is not None and PROXY_SECRET_HEADER in request.headers:
        return _by_proxy(config, request), None
    if known or config.http.proxy_secret is not None:
        missing = "an API key is missing" if token is None else "this is no API key of this service"
        raise _unknown(f"{missing}; send `Authorization: Bearer kto_...` (`kto-ray keys create` makes one)")
    if not config.http.loopback:
        raise _unknown(
            f"there is no API key yet, and http.host is {config.http.host!r}, which others reach; make one with "
            "`kto-ray keys create NAME --scope chat`"
        )
    _demand_from_here(config, request)
    return HERE, None


def _token(request: Request) -> str | None:
    """The key of `Authorization: Bearer KEY`, or of Basic, as Langfuse's clients send it, the password."""
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return given.strip()
    if scheme.lower() == "basic" and request.scope["path"].startswith("/api/public/"):
        try:
            return base64.b64decode(given, validate=True).decode().partition(":")[2]
        except ValueError:  # no base64, no ASCII, or no text within
            return None
    return None


def _by_proxy(config: Config, request: Request) -> Principal:
    http = config.http
    assert http.proxy_secret is not None
    given = request.headers.getlist(PROXY_SECRET_HEADER)
    if len(given) != 1:  # one is the client's own
        raise _unknown("X-Kto-Proxy-Secret must be set by the proxy, once, in place of what clients send")
    if not hmac.compare_digest(given[0].encode("latin-1"), http.proxy_secret.encode()):
        raise _unknown("the proxy's secret is wrong")
    named = request.headers.getlist(http.proxy_user_header)
    try:
        user = named[0].encode("latin-1").decode() if len(named) == 1 else ""  # of two, one is the client's own
    except UnicodeDecodeError:
        user = ""
    if not user.isprintable() or not 0 < len(user) <= LONGEST_USER:
        words = f"must be set by the proxy, once, to a user's name of 1 to {LONGEST_USER} printable characters in UTF-8"
        raise ApiError(401, f"{http.proxy_user_header} {words}", http.proxy_user_header, "no_user", CHALLENGE)
    # It vouches for nobody but this one: what the body claims counts for nothing.
    return Principal(f"{http.proxy_name}/{user}", frozenset({Scope.CHAT, Scope.FEEDBACK}))


def _demand_from_here(config: Config, request: Request) -> None:
    """Without keys, whoever is at this machine may do all; so it must be them, and no page that they look at: neither
    one of another origin, nor one whose name was made to point at this machine.

    Raises:
        ApiError: 403.
    """
    host, origin = request.headers.get("host", ""), request.headers.get("origin")
    site = request.headers.get("sec-fetch-site", "none")
    if request.client is None or request.client.host not in LOCAL_PEERS:
        raise ApiError(403, "without API keys only this machine itself is answered; make a key", code="not_local")
    if not LOCAL_HOST.fullmatch(host):
        words = f"without API keys Host must be 127.0.0.1 or localhost, got {short(host)}"
        raise ApiError(403, words, "Host", "not_local")
    if origin in config.http.cors_origins:
        return
    if origin is not None and origin != f"http://{host}":
        words = f"Origin {short(origin)} is another page's; name it in http.cors_origins if it may"
        raise ApiError(403, words, "Origin", "cross_origin")
    if site not in ("none", "same-origin"):
        raise ApiError(403, f"Sec-Fetch-Site is {short(site)}: another page asks", "Sec-Fetch-Site", "cross_origin")


def _unknown(words: str) -> ApiError:
    return ApiError(401, words, "Authorization", "invalid_api_key", CHALLENGE)
