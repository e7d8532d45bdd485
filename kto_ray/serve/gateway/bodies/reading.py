"""A request's JSON: read within its limits of size and time, and held to what the store and the engine can carry."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

from fastapi import Request
from starlette.requests import ClientDisconnect

from kto_ray.serve.gateway.bodies import limits
from kto_ray.serve.gateway.errors import ApiError, short

KEY, PLACE = 80, 300  # characters of a key, and of a place, that an error names
Trail = tuple[Any, str | int] | None  # where a value stands: the trail of what holds it, and its key there


async def read_json(request: Request) -> dict[str, Any]:
    """The JSON object that a request brings.

    Raises:
        ApiError: 400, 408, 413 or 415; it names the value that is at fault.
    """
    return parse_json(await _read(request))


async def _read(request: Request) -> bytes:
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        words = f"the body is sent with Content-Encoding {short(encoding)}, which is not read here; send it as it is"
        raise ApiError(415, words, "Content-Encoding", "unsupported_encoding")
    announced = request.headers.get("content-length", "")
    if len(announced) > 18 or (announced.isascii() and announced.isdecimal() and int(announced) > limits.BODY_BYTES):
        raise _too_long(announced)
    raw = bytearray()
    try:
        async with asyncio.timeout(limits.BODY_S):
            async for piece in request.stream():
                raw += piece
                if len(raw) > limits.BODY_BYTES:
                    raise _too_long(f"at least {len(raw)}")
    except TimeoutError:
        words = f"the body had not arrived after {limits.BODY_S:g} s ({len(raw)} bytes came); send it at once"
        raise ApiError(408, words, code="request_timeout", headers={"Connection": "close"}) from None
    except ClientDisconnect:
        raise ApiError(400, "the client left before its body had arrived", code="client_left") from None
    return bytes(raw)


def parse_json(raw: bytes) -> dict[str, Any]:
    """A JSON object of UTF-8 text, with or without a byte order mark.

    Raises:
        ApiError: 400.
    """
    try:
        body = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise _no_json(f"the body is not UTF-8: {error.reason} at byte {error.start}") from None
    except ValueError as error:  # also a number of more digits than Python reads
        raise _no_json(f"the body is not JSON: {error}") from None
    except RecursionError:
        raise _too_deep("the body") from None
    if not isinstance(body, dict):
        raise _no_json(f"the body must be a JSON object, got {type(body).__name__}")
    inspect(body)
    return body


def inspect(document: Any, name: str = "") -> None:
    """Refuse a JSON document that cannot be stored or handed to the engine as it is.

    Args:
        name: the field that holds it.

    Raises:
        ApiError: 400 that names the value.
    """
    pending: list[tuple[Any, Trail, int]] = [(document, None, 1)]
    values = 0
    while pending:
        value, trail, depth = pending.pop()
        values += 1
        if fault := _fault(value):
            raise _unfit(_path(name, trail), fault)
        if isinstance(value, dict):
            inner: Any = value.items()
        elif isinstance(value, list):
            inner = enumerate(value)
        else:
            continue
        if depth > limits.DEPTH:
            raise _too_deep(name or "the body")
        if values + len(pending) + len(value) > limits.VALUES:
            raise _no_json(f"{name or 'the body'} holds more than {limits.VALUES} values; shorten it")
        for key, held in inner:
            if isinstance(key, str) and (fault := text_fault(key)):
                raise _unfit(f"a key of {_path(name, trail) or 'the body'}", fault)
            pending.append((held, (trail, key), depth + 1))


def text_fault(text: str) -> str | None:
    """Why a text cannot be stored on every database, in words."""
    if "\0" in text:
        return "holds a NUL character, which a database cannot store; take it out"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"holds half of a surrogate pair at character {error.start}, which is no text; send the whole character"
    return None


def _fault(value: Any) -> str | None:
    if isinstance(value, str):
        return text_fault(value)
    if isinstance(value, float) and not math.isfinite(value):
        return f"must be a finite number, got {value}"
    least, most = limits.INTEGERS
    if isinstance(value, int) and not least <= value <= most:
        return f"must be an integer of at most 64 bits, got one of {value.bit_length()}"
    return None


def _path(name: str, trail: Trail) -> str:
    keys: list[str | int] = []
    while trail:
        trail, key = trail
        keys.append(key)
    return path([name, *reversed(keys)] if name else reversed(keys))


def path(keys: Any) -> str:
    """A place in a JSON document as clients write it: messages[0].content. Keys are the client's, and may be long."""
    steps = (f"[{key}]" if isinstance(key, int) else f".{_cut(key, KEY)}" for key in keys)
    return _cut("".join(steps).removeprefix("."), PLACE)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _unfit(where: str, fault: str) -> ApiError:
    shown = where.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
    return ApiError(400, f"{shown} {fault}", param=shown)


def _too_deep(what: str) -> ApiError:
    return _no_json(f"{what} is nested deeper than {limits.DEPTH} levels; flatten it")


def _no_json(words: str) -> ApiError:
    return ApiError(400, words, code="invalid_json")


def _too_long(size: str) -> ApiError:
    words = f"the body has {size} bytes, above the limit of {limits.BODY_BYTES}; shorten it"
    return ApiError(413, words, code="too_large", headers={"Connection": "close"})
