"""A body's JSON: what is read of it, and how what is not is told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fastapi import Request

from kto_ray.serve.gateway.bodies import limits, parse_json, read_json
from kto_ray.serve.gateway.errors import ApiError


def refused(raw: bytes) -> ApiError:
    with pytest.raises(ApiError) as error:
        parse_json(raw)
    assert error.value.status == 400 and set(error.value.body["error"]) == {"message", "type", "param", "code"}
    return error.value


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b'{"a":1} x',
        b"[1]",
        b"null",
        b"true",
        b'"x"',
        b"\xff\xfe",
        '{"a": 1}'.encode("utf-16"),
        b'{"a": "\xe9"}',
        b'{"a": "\n"}',  # a control character as it stands
        b'{"a": ' + b"9" * 5_000 + b"}",
        b'{"messages":' + b"[" * 50_000,
        b'{"messages":' + b'{"a":' * 50_000,
        b'{"a":' + b"[" * limits.DEPTH + b"]" * limits.DEPTH + b"}",
        b'{"a":[' + b"[]," * limits.VALUES + b"1]}",
    ],
)
def test_what_is_no_small_json_object_is_refused(raw: bytes) -> None:
    assert refused(raw).code == "invalid_json"


@pytest.mark.parametrize(
    ("raw", "param", "words"),
    [
        (b'{"a": NaN}', "a", "finite"),
        (b'{"a": [1, {"b": -Infinity}]}', "a[1].b", "finite"),
        (b'{"a": 1e999}', "a", "finite"),
        (b'{"a": 36893488147419103232}', "a", "64 bits"),
        (b'{"a": ["x", "half \\ud83d"]}', "a[1]", "surrogate"),
        (b'{"a": "\\udc00\\ud83d"}', "a", "surrogate"),
        (b'{"a": {"b": "x\\u0000"}}', "a.b", "NUL"),
        (b'{"a": {"\\u0000": 1}}', "a key of a", "NUL"),
        (b'{"\\ud800": 1}', "a key of the body", "surrogate"),
    ],
)
def test_what_cannot_be_stored_is_told_by_its_place(raw: bytes, param: str, words: str) -> None:
    error = refused(raw)
    assert error.param == param and words in str(error)


def test_what_is_fit_passes_as_it_is() -> None:
    assert parse_json(b'\xef\xbb\xbf{"a": "\\ud83d\\ude00", "b": [1.5, -3, true, null, 18446744073709551615]}') == {
        "a": "😀",
        "b": [1.5, -3, True, None, 2**64 - 1],
    }
    deep = b"[" * (limits.DEPTH - 1) + b"]" * (limits.DEPTH - 1)
    assert parse_json(b'{"a":' + deep + b"}")


class Wire:
    """A request whose body comes in these pieces, and then never ends, or ends with the client."""

    def __init__(self, *pieces: bytes, leaves: bool = False, **headers: str) -> None:
        self.pieces, self.leaves, self.taken = list(pieces), leaves, 0
        named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        self.request = Request({"type": "http", "method": "POST", "headers": named}, self.receive)

    async def receive(self) -> dict[str, Any]:
        if self.pieces:
            self.taken += 1
            return {"type": "http.request", "body": self.pieces.pop(0), "more_body": True}
        if self.leaves:
            return {"type": "http.disconnect"}
        await asyncio.Event().wait()
        raise AssertionError

    def refused(self) -> ApiError:
        with pytest.raises(ApiError) as error:
            asyncio.run(read_json(self.request))
        return error.value


def test_a_body_that_is_announced_as_too_long_is_not_read() -> None:
    for length in (str(limits.BODY_BYTES + 1), "9" * 5_000):
        wire = Wire(b"{}", content_length=length)
        assert wire.refused().status == 413 and wire.taken == 0


def test_a_body_that_grows_too_long_is_cut_off() -> None:
    mebibyte = b" " * 2**20
    wire = Wire(*[mebibyte] * 100)
    assert wire.refused().status == 413 and wire.taken == limits.BODY_BYTES // 2**20 + 1


def test_a_body_that_never_ends_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BODY_S", 0.01)
    error = Wire(b'{"messages"').refused()
    assert (error.status, error.code) == (408, "request_timeout") and "11 bytes" in str(error)


def test_a_client_that_leaves_with_half_a_body_is_no_fault() -> None:
    assert Wire(b'{"messages"', leaves=True).refused().code == "client_left"


def test_a_compressed_body_is_refused_in_words() -> None:
    wire = Wire(b"x", content_encoding="gzip")
    error = wire.refused()
    assert error.status == 415 and "gzip" in str(error) and wire.taken == 0
