"""A load of streams: what its clients read of an answer, whole or broken off, and how often they ask."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kto_ray.bench.streams import Load, Stream, Streamed, read, streamed
from kto_ray.config import Config
from kto_ray.store import Store, completions, tallies
from tests.support.engine import WORDS, StandIn
from tests.support.served import served

BODY = {"messages": [{"role": "user", "content": "Why?"}], "stream": True, "temperature": 0}


def event(delta: dict[str, Any] | None = None, finish: str | None = None, **more: Any) -> bytes:
    choices = [] if delta is None else [{"delta": delta, "finish_reason": finish}]
    return f"data: {json.dumps({'id': 'c1', 'system_fingerprint': 'v1', 'choices': choices, **more})}\n\n".encode()


ROLE, SKY, END = event({"role": "assistant", "content": ""}), event({"content": "Sky"}), event({}, "length")
DONE = b"data: [DONE]\n\n"


def test_times_are_of_text_from_when_it_was_due_and_an_event_may_come_in_pieces() -> None:
    blue = event({"content": " is blue"})
    usage = event(usage={"completion_tokens": 9})
    pieces = [(10.1, ROLE), (10.2, SKY[:20]), (10.3, SKY[20:] + blue[:5]), (10.7, blue[5:]), (10.9, END + usage + DONE)]
    found = read(3, 10.0, 200, pieces, True)
    assert (found.body, found.id, found.version, found.text) == (3, "c1", "v1", "Sky is blue")
    assert (found.tokens, found.finish, found.ended, found.failed, found.cut) == (9, "length", True, False, False)
    assert found.first_ms == pytest.approx(300) and found.gaps_ms == pytest.approx((400,))


@pytest.mark.parametrize(
    "pieces, whole",
    [
        ([SKY, END], True),  # no [DONE]
        ([SKY, DONE], True),  # no reason
        ([SKY, event({}, "abort"), DONE], True),  # no end that an answer has
        ([SKY, END, DONE], False),  # the connection broke
    ],
)
def test_an_answer_without_its_end_is_cut_off(pieces: list[bytes], whole: bool) -> None:
    found = read(0, 0.0, 200, [(1.0, piece) for piece in pieces], whole)
    assert found.cut and not found.failed


def test_failures_are_told_by_status_or_in_the_stream() -> None:
    late = read(0, 0.0, 200, [(1.0, SKY), (2.0, b'data: {"error": {"message": "broke off"}}\n\n')], True)
    early = read(0, 0.0, 503, [(1.0, b'{"error": {"message": "busy"}}')], True)
    assert late.failed and late.error == "broke off" and early.failed and "busy" in str(early.error)
    assert not late.cut and not early.cut
    whole = read(0, 0.0, 200, [(1.0, SKY + END + DONE)], True)
    with pytest.raises(RuntimeError, match=r"1 of 2 answers failed.*503.*busy"):
        Streamed(1.0, (whole, early)).refuse_failures()
    with pytest.raises(RuntimeError, match="0 of 0"):
        Streamed(1.0, ()).refuse_failures()


def config_at(port: int, home: Path) -> Config:
    return Config(home=str(home)).model_copy(update={"http": Config().http.model_copy(update={"port": port})})


def test_streams_of_the_gateway_are_those_that_it_logs(
    sqlite_store: Store, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    port = free_port()
    bodies = [BODY, {**BODY, "model": "policy@base"}]
    with served(config_at(port, tmp_path), sqlite_store, StandIn()):
        most = streamed(Load(port, bodies, 0.5, at_once=2), "a closed loop")
        some = streamed(Load(port, bodies, 1.0, per_s=40, seed=1), "an open one")
    for found in (most.refuse_failures(), some.refuse_failures()):
        assert {stream.text for stream in found.streams} == {"".join(WORDS)}
        assert {stream.version for stream in found.streams} == {"policy@base"}
        assert {stream.body for stream in found.streams} == {0, 1}
        assert 0 < found.first_ms(0.5) <= found.first_ms(0.99) and found.gap_ms(0.5) > 0
    assert 20 < len(some.streams) < 65 and most.per_s > 2 / most.seconds
    with sqlite_store.read() as tx:
        assert tallies.total(tx).completions == len(most.streams) + len(some.streams)
        row = completions.get(tx, most.streams[0].id)
    assert row is not None and row.text == most.streams[0].text


def test_a_server_that_lets_go_breaks_its_stream_and_not_the_load(free_port: Callable[[], int]) -> None:
    """Each connection gets the head, one piece of text, and the end of the connection."""
    port = free_port()
    sock = socket.create_server(("127.0.0.1", port))

    def serve() -> None:
        while True:
            try:
                line, _ = sock.accept()
            except OSError:
                return
            with line:
                line.recv(65536)
                head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                line.sendall(head + f"{len(SKY):x}\r\n".encode() + SKY + b"\r\n")

    threading.Thread(target=serve, daemon=True).start()
    found = streamed(Load(port, [BODY], 0.3, at_once=1), "a closed loop").streams
    sock.shutdown(socket.SHUT_RDWR)
    sock.close()
    assert len(found) > 1 and all(stream.cut and stream.text == "Sky" for stream in found)


def stream(**changes: Any) -> Stream:
    whole = dict(body=0, status=200, id="c1", version="v1", text="Sky", tokens=4, finish="length", ended=True)
    return Stream(**{**whole, "error": None, "first_ms": 10.0, "gaps_ms": (1.0, 3.0), **changes})


def test_rates_are_of_tokens_over_the_whole_time() -> None:
    found = Streamed(2.0, (stream(), stream(tokens=6, first_ms=30.0, gaps_ms=(2.0,))))
    assert found.tokens_per_s == 5.0 and found.per_s == 1.0
    assert found.first_ms(0.5) == 30.0 and found.gap_ms(0.5) == 2.0
