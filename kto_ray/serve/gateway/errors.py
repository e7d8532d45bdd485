"""Every answer that is not 2xx has OpenAI's shape, whatever failed."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import parse_qsl

import sqlalchemy as sa
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


@dataclass(frozen=True, slots=True)
class Error:
    message: str
    type: str
    param: str | None  # the field or header that is wrong
    code: str | None


@dataclass(frozen=True, slots=True)
class ErrorBody:
    error: Error


# Of every route, for the OpenAPI document.
RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "What was wrong with the request, and what mends it"},
    "5XX": {"model": ErrorBody, "description": "The service cannot answer now; ask again"},
}


class ApiError(Exception):
    """An error of the contract, `ErrorBody`, with an HTTP status."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = headers

    @property
    def body(self) -> dict[str, Any]:
        kind = KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return asdict(ErrorBody(Error(str(self), kind, self.param, self.code)))


def later(status: int, wait_s: int, words: str) -> ApiError:
    """What was too much now, and when to ask again."""
    told = f"{words}; try again in {wait_s} s"
    return ApiError(status, told, code="rate_limit_exceeded", headers={"retry-after": str(wait_s)})


def short(value: Any) -> str:
    """A value as an error shows it: a client knows what it sent, and a page of it hides the words."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def shortened(words: str, value: Any) -> str:
    """The words of a room below, which show a value whole."""
    return words.replace(repr(value), short(value))


def request_line(scope: Scope) -> str:
    return f"{scope['method']} {scope['path']}"


def install(app: FastAPI) -> None:
    """Have an app answer errors in this shape."""
    app.router.redirect_slashes = False  # a redirect has no such shape
    app.add_middleware(Unforeseen)

    @app.exception_handler(ApiError)
    async def _own(_: Request, error: ApiError) -> JSONResponse:
        return answer(error)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        words = f"{short(request_line(request.scope))}: {error.detail}"
        return answer(ApiError(error.status_code, words, headers=error.headers))

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        param = str(first["loc"][-1])
        return answer(ApiError(400, f"{param}: {first['msg']}, got {short(first['input'])}", param))

    @app.exception_handler(sa.exc.SQLAlchemyError)
    async def _store(_: Request, error: sa.exc.SQLAlchemyError) -> JSONResponse:
        return answer(store_failed(error))


def answer(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body, status_code=error.status, headers=error.headers)


def store_failed(error: sa.exc.SQLAlchemyError) -> ApiError:
    log.error("the store failed: %s", error)
    return ApiError(503, "the store cannot be reached; nothing was recorded, try again")


def unforeseen(error: Exception) -> ApiError:
    """A fault of ours, logged by its place: its message may hold what a user wrote."""
    places = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)]
    log.error("unforeseen %s at %s", type(error).__name__, " < ".join(reversed(places)))
    return ApiError(500, "the service failed in a way that it did not foresee; it is logged", code="internal")


def _nul(scope: Scope) -> ApiError | None:
    """What is told of a NUL in a path or a query: no name holds one, and a database fails on it."""
    if "\0" in scope["path"]:
        return ApiError(404, "the path holds a NUL character, as no name does")
    query: bytes = scope.get("query_string", b"")
    if b"\0" not in query and b"%00" not in query:
        return None
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if "\0" in name or "\0" in value:
            shown = name.replace("\0", "\\0")[:80]
            return ApiError(400, f"{shown} of the query holds a NUL character; take it out", shown)
    return None


class Unforeseen:
    """Answers what no handler knows. Starlette's last resort would hand it on to the server, which logs its text."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif refused := _nul(scope):
            await answer(refused)(scope, receive, send)
        else:
            try:
                await self._app(scope, receive, watched)
            except ClientDisconnect:
                return  # nobody is there to be told
            except Exception as error:
                told = unforeseen(error)
                if not begun:
                    await answer(told)(scope, receive, send)
