"""Every answer that is not 2xx has the contract's shape, whatever failed, and logs no user's text."""

from __future__ import annotations

import itertools
import json
import logging
import time
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from ray.exceptions import RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from kto_ray.config import Config
from kto_ray.serve.gateway.api import build
from kto_ray.store import Store, completions, labels, schema
from tests.api.conftest import HI, Api
from tests.support.engine import StandIn
from tests.support.local import by_hand, local

SECRET = "my diagnosis"
CHAT = "/v1/chat/completions"


def told(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    assert isinstance(error["code"], str | None) and isinstance(error["param"], str | None)
    return error


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1", 404),
        ("POST", "/v1/chat", 404),
        ("GET", "/v1/models/", 404),
        ("GET", "/v1/chat/completions/", 404),
        ("GET", "/v1/loop/", 404),
        ("GET", "/v1/completions/%00", 404),
        ("GET", "/v1/completions/%ff", 404),
        ("GET", "/v1/lineage/a%00b", 404),
        ("DELETE", "/v1/feedback/%00", 404),
        ("GET", CHAT, 405),
        ("PUT", CHAT, 405),
        ("OPTIONS", CHAT, 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/v1/responses", 405),
        ("PATCH", "/v1/feedback", 405),
        ("POST", "/v1/completions", 404),
        ("GET", "/v1/loop/rounds/99999999999999999999", 400),
        ("GET", "/v1/loop/rounds/-1", 400),
    ],
)
def test_unknown_routes_and_methods(api: Api, method: str, path: str, status: int) -> None:
    answer = api.client.request(method, path, follow_redirects=False)
    told(answer, status)
    if status == 405:
        assert answer.headers["allow"]


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nowhere", 404), ("PUT", "/v1/models", 405)])
def test_bytes_that_are_no_text_are_no_fault_of_ours(api: Api, method: str, path: str, status: int) -> None:
    for byte in (b"\xff", b"\xe9=%ff"):
        assert by_hand(api.client.app, method, path, query=byte)[0] == status
        assert by_hand(api.client.app, method, path, host=byte)[0] == 403
        assert by_hand(api.client.app, "POST", "/api/public/scores", authorization=b"Basic " + byte)[0] == 404


def test_head_has_no_body_to_shape(api: Api) -> None:
    assert api.client.head("/nowhere").status_code == 404
    assert api.client.head("/v1/models").status_code in (200, 405)


def test_the_old_endpoint_says_which_to_use(api: Api) -> None:
    answer = api.client.post("/v1/completions", json={"model": "policy", "prompt": "Hi"})
    assert CHAT in told(answer, 404)["message"]


@pytest.mark.parametrize(
    ("refusal", "status", "code"),
    [
        (
            {"message": "too long", "code": 400, "param": "max_tokens", "type": "BadRequestError"},
            400,
            "BadRequestError",
        ),
        ({"message": "too long", "code": "400", "param": "max_tokens", "type": "Bad"}, 400, "Bad"),
        (
            {"message": "too long", "code": "context_length", "param": "max_tokens", "type": "Bad"},
            400,
            "context_length",
        ),
        ({"message": "too long", "code": None, "param": "max_tokens"}, 400, None),
        ({"message": "not here", "code": 404, "param": "model", "type": "NotFoundError"}, 404, "NotFoundError"),
        ({"message": "away", "code": 503, "param": "model", "type": "server_error"}, 503, "server_error"),
        ({"message": SECRET, "code": 500, "type": "InternalServerError"}, 503, "engine_failed"),
        ({"message": SECRET, "code": 42}, 503, "engine_failed"),
        (SECRET, 400, None),
        (None, 400, None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_the_engine_refuses(api: Api, refusal: Any, status: int, code: str | None, stream: bool) -> None:
    api.engine.refusal = refusal
    if isinstance(refusal, dict) or refusal is None:
        api.engine.refusal = refusal or {}
    error = told(api.chat(stream=stream), status)
    assert error["code"] == code
    if isinstance(refusal, dict) and refusal.get("param") and status < 500:
        assert error["param"] == refusal["param"]
    assert left(api) == (["failed"] if status >= 500 else [])


def left(api: Api) -> list[str]:
    """The status of each row, once all that was under way is written."""
    api.door.writer.change(lambda _: None).result(20)
    with api.store.read() as tx:
        return list(tx.execute(sa.select(schema.completions.c.status)).scalars())


def task_error() -> Exception:
    cause = ValueError(SECRET)
    wrapped: Exception = RayTaskError("generate", SECRET, cause).as_instanceof_cause()
    return wrapped


FAULTS = [task_error(), BackPressureError(1, 1), DeploymentUnavailableError(None)]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
@pytest.mark.parametrize("stream", [False, True])
def test_what_the_engine_fails_with(api: Api, caplog: pytest.LogCaptureFixture, fault: Exception, stream: bool) -> None:
    api.engine.fault = fault
    told(api.chat(stream=stream), 503)
    assert SECRET not in caplog.text and len(api.engine.asked) == 1
    assert left(api) == ([] if isinstance(fault, BackPressureError) else ["failed"])


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_ends_without_an_answer(api: Api, stream: bool) -> None:
    api.engine.silent = True
    assert told(api.chat(stream=stream, user="ann"), 503)["code"] == "no_answer"
    assert left(api) == ["failed"]
    with api.store.read() as tx:
        [row] = completions.of_user(tx, "ann")
    assert (row.text, row.first_token_s) == ("", None)
    said = api.say(row.id, user="ann").json()
    assert "the answer is failed" in json.dumps(said)
    with api.store.read() as tx:
        assert labels.of(tx, row.id) == []


class Broken(StandIn):
    """Goes wrong after two words, in a way of its own."""

    def __init__(self, after: str | Exception) -> None:
        super().__init__()
        self.after = after

    async def _stream(self, body: Any, adapter: str) -> Any:
        first = [event async for event in super()._stream(body, adapter)][:2]
        for event in first:
            yield event
        if isinstance(self.after, Exception):
            raise self.after
        yield self.after


INSIDE = json.dumps(
    {"error": {"message": "EngineCore died", "type": "InternalServerError", "code": 500, "param": None}}
)


@pytest.fixture(params=[task_error(), ValueError(SECRET), f"data: {INSIDE}\n\n", "data: {\n\n", "data: [DONE]\n\n"])
def broken(request: pytest.FixtureRequest, sqlite_store: Store, tmp_path: Any) -> Iterator[TestClient]:
    app = build(Config(home=str(tmp_path)), sqlite_store, Broken(request.param).generate)
    with local(app) as client:
        yield client


@pytest.mark.parametrize(("path", "body"), [(CHAT, {"messages": HI}), ("/v1/responses", {"input": "Hi"})])
def test_a_fault_in_mid_stream_is_an_event_of_the_shape(
    broken: TestClient, sqlite_store: Store, caplog: pytest.LogCaptureFixture, path: str, body: dict[str, Any]
) -> None:
    answer = broken.post(path, json={**body, "stream": True, "user": "ann"})
    assert answer.status_code == 200 and "[DONE]" not in answer.text and "completed" not in answer.text
    last = json.loads(answer.text.strip().rsplit("data: ", 1)[1])
    assert set(last["error"]) == {"message", "type", "param", "code"} and last["error"]["type"] == "server_error"
    assert SECRET not in caplog.text and SECRET not in answer.text
    for _ in range(500):
        with sqlite_store.read() as tx:
            if rows := completions.of_user(tx, "ann"):
                break
        time.sleep(0.01)
    assert [(row.status, row.text) for row in rows] == [("failed", "The sky")]


def test_the_unforeseen_is_told_and_logged_without_a_users_text(
    api: Api, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise KeyError(SECRET)

    monkeypatch.setattr("kto_ray.serve.gateway.chat.parse_chat", fail)
    with caplog.at_level(logging.DEBUG):
        error = told(api.chat(), 500)
    assert (error["type"], error["code"]) == ("server_error", "internal")
    assert "unforeseen KeyError" in caplog.text and "test_errors.py" in caplog.text and SECRET not in caplog.text


LONG = "x" * 30_000


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, {"messages": HI, "temperature": LONG}, "temperature"),
        (CHAT, {"messages": HI, LONG: 1}, None),
        (CHAT, {"messages": HI, "chat_template_kwargs": {LONG: 1}}, None),
        (CHAT, {"messages": HI, "logit_bias": {LONG: 1}}, None),
        (CHAT, {"messages": HI, "n": [LONG]}, "n"),
        (CHAT, {"messages": HI, "model": LONG[:255]}, "model"),
        (CHAT, {"messages": HI, "a": {LONG: {LONG: {LONG: {LONG: {LONG: float("inf")}}}}}}, None),
        ("/v1/responses", {"input": [{"type": LONG}]}, "input[0]"),
        ("/v1/feedback", {"completion_id": "c", "kind": LONG}, "kind"),
        ("/v1/feedback", {"completion_id": "c", "kind": "thumb", "value": LONG}, "value"),
        ("/v1/feedback", {"completion_id": "c", "kind": "signal", "signal": LONG}, "signal"),
    ],
)
def test_no_error_shows_more_than_a_piece_of_a_value(api: Api, path: str, body: Any, param: str | None) -> None:
    answer = api.client.post(path, content=json.dumps(body))
    assert answer.status_code in (400, 404) and len(answer.text) < 1_200, len(answer.text)
    assert param in (None, answer.json()["error"]["param"])


@pytest.mark.parametrize("name", ["Host", "Origin", "Sec-Fetch-Site", "Content-Type", "Content-Encoding"])
def test_no_error_shows_more_than_a_piece_of_a_header(api: Api, name: str) -> None:
    answer = api.client.post(CHAT, json={"messages": HI}, headers={name: LONG})
    assert answer.status_code in (403, 415) and len(answer.text) < 500
    assert answer.json()["error"]["param"] == name


FOLDERS = ["", "v1/models", "v1/completions", "v1/lineage", "v1/feedback", "v1/rollout"]


@pytest.mark.parametrize(
    ("method", "folder"), [*itertools.product(["GET", "POST"], FOLDERS), ("DELETE", "v1/feedback")]
)
def test_no_error_shows_more_than_a_piece_of_a_path(api: Api, method: str, folder: str) -> None:
    for path in (f"/{folder}/{LONG}", f"/{folder}/{LONG}/drop"):
        answer = api.client.request(method, path)
        assert 400 <= answer.status_code < 500 and len(answer.text) < 500


@pytest.mark.parametrize("encoding", ["", "identity", " Identity "])
def test_an_empty_encoding_is_none(api: Api, encoding: str) -> None:
    answer = api.client.post(CHAT, json={"messages": HI}, headers={"Content-Encoding": encoding})
    assert answer.status_code == 200


def test_what_the_engine_says_is_cut(api: Api) -> None:
    api.engine.refusal = {"message": LONG, "code": 400}
    assert len(api.chat().text) < 600


def test_bodies_that_are_none(api: Api) -> None:
    for path in (CHAT, "/v1/responses", "/v1/feedback"):
        for raw in (b"", b"{", b"[]", b"\xff", b'{"a": 1} x', b"[" * 50_000, b'{"messages": NaN}'):
            told(api.client.post(path, content=raw), 400)
        told(api.client.post(path, content=b" " * (4 * 1024 * 1024 + 1)), 413)
        told(api.client.post(path, content=b"x", headers={"content-encoding": "gzip"}), 415)
        told(api.client.post(path, files={"file": b"x"}), 400)
    assert api.engine.asked == []
