"""Object storage that cannot be reached says so in one way, whatever is asked of it, and one that can is s3fs."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from moto.server import ThreadedMotoServer

from kto_ray import paths
from kto_ray.paths import StorageAway
from tests.conftest import FreePort

ASKED: dict[str, Callable[[str], Any]] = {
    "exists": lambda uri: _of(uri, "exists"),
    "isdir": lambda uri: _of(uri, "isdir"),
    "ls": lambda uri: _of(uri, "ls"),
    "cat": lambda uri: _of(uri, "cat_file"),
    "rm": lambda uri: _of(uri, "rm"),
    "write": lambda uri: paths.write_atomic(uri, b"x"),
    "append": lambda uri: paths.append(uri, b"x"),
}


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch, free_port: FreePort) -> int:
    """The port where object storage is looked for. A bucket of its own each: fsspec keeps what it has listed."""
    port = free_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    paths.filesystem("s3://bucket")[0].clear_instance_cache()
    return port


def _of(uri: str, method: str) -> Any:
    fs, path = paths.filesystem(uri)
    return getattr(fs, method)(path)


@pytest.mark.parametrize("asked", ASKED)
def test_nobody_there(at: int, asked: str) -> None:
    with pytest.raises(StorageAway, match="cannot be reached") as error:
        ASKED[asked]("s3://bucket/folder/file")
    assert isinstance(pickle.loads(pickle.dumps(error.value)), StorageAway), "it goes through Ray's processes"


class Broken(BaseHTTPRequestHandler):
    """What a load balancer says while what is behind it is down, or has enough."""

    status = 502

    def answer(self) -> None:
        self.send_response(self.status)
        self.send_header("content-length", "0")
        self.end_headers()

    do_GET = do_HEAD = do_PUT = answer

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("status", "away"), [(500, True), (502, True), (503, True), (504, True), (429, True), (403, False)]
)
def test_a_storage_that_does_not_serve_is_away_and_one_that_refuses_is_not(at: int, status: int, away: bool) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", at), type("Says", (Broken,), {"status": status}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(OSError) as error:
            ASKED["cat"]("s3://bucket/folder/file")
        assert isinstance(error.value, StorageAway) is away
    finally:
        server.shutdown()
        server.server_close()


def test_what_is_there_is_as_on_a_disk(at: int) -> None:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=at, verbose=False)
    server.start()
    try:
        fs, folder = paths.filesystem("s3://bucket/folder")
        fs.mkdir("bucket")
        assert not fs.exists(f"{folder}/lines")
        with pytest.raises(FileNotFoundError):
            fs.cat_file(f"{folder}/lines")
        for line in (b"one\n", b"two\n"):
            paths.append("s3://bucket/folder/lines", line)
        assert fs.cat_file(f"{folder}/lines") == b"one\ntwo\n" and fs.isdir(folder)
    finally:
        server.stop()
