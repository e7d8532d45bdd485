"""What the engine tells in place of an answer, in the contract's shape."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from kto_ray.records.replicas import LACKED
from kto_ray.serve.gateway.errors import ApiError

log = logging.getLogger(__name__)

ENGINES_WORDS = 400  # characters of what the engine says, which may hold what was asked


def refuse(first: str) -> None:
    """
    Raises:
        ApiError: the first event is none, or tells of an error.
    """
    if not first:
        raise ApiError(503, "the engine ended without an answer; ask again", code="no_answer")
    if "error" in (told := json.loads(first.removeprefix("data:"))):
        raise refusal(told["error"])


def refusal(error: Any) -> ApiError:
    """What the engine says against a request, in the contract's shape. Its `code` is an HTTP status, or a word."""
    told: Mapping[str, Any] = error if isinstance(error, dict) else {"message": str(error)}
    code = told.get("code")
    status = int(str(code)) if str(code).isdecimal() else 400
    if not 400 <= status < 600 or status == 500:
        log.error("the engine failed: code %s, type %s", code, told.get("type"))
        return ApiError(503, "the engine failed; ask again", code="engine_failed")
    word = code if isinstance(code, str) and not code.isdecimal() else told.get("type")
    param, words = told.get("param"), str(told.get("message"))[:ENGINES_WORDS]
    return ApiError(status, words, None if param is None else str(param), word and str(word))


def failed_itself(event: str) -> bool:
    """Whether a first event tells that not the request was at fault, but who was to answer it."""
    return str(_error(event).get("code")) in ("500", "503")


def lacks(event: str) -> bool:
    """Whether it tells that this replica does not hold the version it was asked for."""
    return _error(event).get("type") == LACKED


def _error(event: str) -> Mapping[str, Any]:
    """What an event tells of an error; empty where it tells of none."""
    told = event.removeprefix("data:").lstrip()
    error = json.loads(told)["error"] if told.startswith('{"error"') else None
    return error if isinstance(error, dict) else {}
