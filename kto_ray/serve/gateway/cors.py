"""Which web pages may call the API: those of `http.cors_origins`, none by default."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.responses import Response
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware

from kto_ray.config import Config
from kto_ray.serve.gateway.errors import ApiError, answer, short
from kto_ray.serve.gateway.guard import TOKEN_HEADER

METHODS = ("GET", "POST", "DELETE")
SHOWN = ("x-kto-completion-id", TOKEN_HEADER, "retry-after")


class Cors(CORSMiddleware):
    """Starlette's, but for a refusal, which has the contract's shape."""

    def preflight_response(self, request_headers: Headers) -> Response:
        told = super().preflight_response(request_headers)
        return told if told.status_code == 200 else answer(_refusal(request_headers))


def _refusal(asked: Headers) -> ApiError:
    """What of a preflight is not allowed: it has an origin and a method, and may ask for any header."""
    method = asked["access-control-request-method"]
    if method in METHODS:
        words = f"pages of {short(asked['origin'])} may not call; http.cors_origins says which may"
        return ApiError(403, words, "Origin", "cors")
    words = f"pages may call by {', '.join(METHODS)}, got {short(method)}"
    return ApiError(403, words, "Access-Control-Request-Method", "cors")


def install(app: FastAPI, config: Config) -> None:
    """Let an app answer the pages of its config. The outermost of its middleware: errors are for pages to read, too.

    Such a page may send any header: SDKs add their own (x-stainless-*, openai-*), and as no credentials are allowed, a
    header proves nothing that the page does not know itself.
    """
    if config.http.cors_origins:
        app.add_middleware(
            Cors,
            allow_origins=config.http.cors_origins,
            allow_methods=METHODS,
            allow_headers=("*",),
            allow_private_network=True,
            expose_headers=SHOWN,
        )
