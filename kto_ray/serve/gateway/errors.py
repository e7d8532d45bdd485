"""Every answer that is not 2xx has OpenAI's shape, whatever failed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

log = logging.getLogger(__name__)


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
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return asdict(ErrorBody(Error(str(self), kind, self.param, self.code)))


def install(app: FastAPI) -> None:
    """Have an app answer errors in this shape."""

    @app.exception_handler(ApiError)
    async def _own(_: Request, error: ApiError) -> JSONResponse:
        return answer(error)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        return answer(ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}"))

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        param = str(first["loc"][-1])
        return answer(ApiError(400, f"{param}: {first['msg']}, got {first['input']!r}", param))

    @app.exception_handler(sa.exc.SQLAlchemyError)
    async def _store(_: Request, error: sa.exc.SQLAlchemyError) -> JSONResponse:
        log.error("the store failed: %s", error)
        return answer(ApiError(503, "the store cannot be reached; nothing was recorded, try again"))


def answer(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body, status_code=error.status, headers=error.headers)
