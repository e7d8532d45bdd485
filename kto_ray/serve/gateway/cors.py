"""Which web pages may call the API: those of `http.cors_origins`, none by default."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.responses import Response
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware

from kto_ray.config import Config
from kto_ray.serve.gateway.bodies import headers
from kto_ray.serve.gateway.errors import ApiError, answer
from kto_ray.serve.gateway.guard import ACT_HEADER, TOKEN_HEADER

METHODS = ("GET", "POST", "DELETE")
SHOWN = ("x-kto-completion-id", TOKEN_HEADER, "retry-after")


class Cors(CORSMiddleware):
    """Starlette's, but for a refusal, which has the contract's shape."""

    def preflight_response(self, request_headers: Headers) -> Response:
        told = super().preflight_response(request_headers)
        if told.status_code == 200:
            return told
        origin = request_headers.get("origin")
        words = f"{bytes(told.body).decode()}: {origin}; http.cors_origins says which pages may call"
        return answer(ApiError(403, words, "Origin", "cors"))


def install(app: FastAPI, config: Config) -> None:
    """Let an app answer the pages of its config. The outermost of its middleware: errors are for pages to read, too."""
    if config.http.cors_origins:
        app.add_middleware(
            Cors,
            allow_origins=config.http.cors_origins,
            allow_methods=METHODS,
            allow_headers=("authorization", "content-type", ACT_HEADER, TOKEN_HEADER, *headers.LIMITS),
            expose_headers=SHOWN,
        )
