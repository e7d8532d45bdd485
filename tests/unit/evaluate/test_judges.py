"""Judges behind a real HTTP server on loopback: both positions, and one that is away, refuses, is silent or babbles."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from kto_ray.config.judging import JudgeSection
from kto_ray.evaluate import judges
from kto_ray.evaluate.judges import Judge, LlmJudge, RewardJudge, RuleJudge, Silent, as_text, judge_of

KEY = "s3cret-of-the-judge"
ASKED = ({"role": "user", "content": "What is the capital of France?"},)
Answers = Callable[[dict[str, Any]], tuple[int, str]]


class Endpoint(ThreadingHTTPServer):
    """Answers every POST as it is told, and remembers what was asked."""

    daemon_threads = True

    def __init__(self, answers: Answers) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers = answers
        self.asked: list[tuple[str, str | None, dict[str, Any]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, self.headers["Authorization"], body))
        status, text = self.server.answers(body)
        self.send_response(status)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def endpoint(answers: Answers) -> Iterator[Endpoint]:
    served = Endpoint(answers)
    thread = threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield served
    finally:
        served.shutdown()
        served.server_close()


def chat(text: str | None) -> tuple[int, str]:
    return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})


def section(url: str, kind: str = "llm", **changes: Any) -> JudgeSection:
    return JudgeSection.model_validate({"kind": kind, "url": url, "model": "m", "key": KEY, **changes})


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judges, "REST_S", 0.0)


def likes_paris(body: dict[str, Any]) -> tuple[int, str]:
    """A judge that reads: answer A is better where it names Paris, B where that does."""
    said = body["messages"][0]["content"]
    first, second = (said.split(f"<answer_{side}>")[1].split(f"</answer_{side}>")[0] for side in "ab")
    rates = "Paris" in first, "Paris" in second
    verdict = "C" if rates[0] == rates[1] else "A" if rates[0] else "B"
    return chat(f"[[B]] would be wrong of me? Hmm.\n[[{verdict}]]")


def test_a_language_model_is_asked_in_both_positions() -> None:
    with endpoint(likes_paris) as served:
        judge = LlmJudge(section(served.url))
        assert judge.prefer(ASKED, "Paris.", "Lyon.") == 1.0
        assert judge.prefer(ASKED, "Lyon.", "Paris.") == 0.0
        assert judge.prefer(ASKED, "Paris.", "It is Paris.") == 0.5
    assert len(served.asked) == 6
    (path, key, first), (_, _, second) = served.asked[:2]
    assert (path, key) == ("/v1/chat/completions", f"Bearer {KEY}")
    assert (first["model"], first["temperature"], first["max_tokens"]) == ("m", 0, 512)
    texts = [body["messages"][0]["content"] for body in (first, second)]
    assert all("user: What is the capital of France?" in text for text in texts)
    assert texts[0].index("Paris.") < texts[0].index("Lyon.") and texts[1].index("Lyon.") < texts[1].index("Paris.")


@pytest.mark.parametrize("always", ["A", "B"])
def test_a_liking_for_a_position_is_a_tie(always: str) -> None:
    with endpoint(lambda body: chat(f"[[{always}]]")) as served:
        assert LlmJudge(section(served.url)).prefer(ASKED, "x", "y") == 0.5


def test_a_language_model_rates_one_answer() -> None:
    with endpoint(lambda body: chat("A 3 at first sight, but [[10]]")) as served:
        judge = LlmJudge(section(served.url, params={"max_completion_tokens": 9}))
        assert judge.rate(ASKED, "Paris, and nothing else.") == 10.0
    ((_, _, body),) = served.asked
    assert "Paris, and nothing else." in body["messages"][0]["content"]
    assert body["max_completion_tokens"] == 9 and "temperature" not in body, "what an endpoint refuses can be left out"


def test_a_reward_model_reads_the_conversation_through_its_template() -> None:
    def rewards(body: dict[str, Any]) -> tuple[int, str]:
        return 200, json.dumps({"data": [{"index": 0, "probs": [-len(body["messages"][-1]["content"]) / 7]}]})

    with endpoint(rewards) as served:
        judge = RewardJudge(section(served.url, "reward"))
        assert judge.rate(ASKED, "Paris..") == -1.0
        assert judge.prefer(ASKED, "Paris.", "It is Paris.") == 1.0
        assert judge.prefer(ASKED, "It is Paris.", "Paris.") == 0.0
        assert judge.prefer(ASKED, "Paris.", "Lyons.") == 0.5
    path, key, body = served.asked[0]
    assert (path, key) == ("/classify", f"Bearer {KEY}"), "beside /v1"
    assert body["messages"] == [*ASKED, {"role": "assistant", "content": "Paris.."}]
    assert body["use_activation"] is False


@pytest.mark.parametrize(
    ("probs", "words"), [("[0.1, 0.9]", "no single number"), ("[]", "no single number"), ("[NaN]", "no answer of such")]
)
def test_a_reward_is_one_number(probs: str, words: str) -> None:
    with (
        endpoint(lambda body: (200, f'{{"data": [{{"probs": {probs}}}]}}')) as served,
        pytest.raises(Silent, match=words),
    ):
        RewardJudge(section(served.url, "reward")).rate(ASKED, "x")


@pytest.mark.parametrize(
    ("told", "words", "times"),
    [
        (chat("Both are fine."), "without a verdict", 1),
        (chat("[[D]] [[11]]"), "without a verdict", 1),
        (chat(None), "without a verdict", 1),
        ((200, '{"choices": []}'), "without a verdict", 1),
        ((200, "<html>welcome</html>"), "no answer of such an endpoint", 1),
        ((200, '{"choices": [{"text": "A"}]}'), "no answer of such an endpoint", 1),
        ((401, '{"error": "wrong key"}'), "with status 401", 1),
        ((302, ""), "with status 302", 1),
        ((503, "busy"), "with status 503", 2),
        ((429, "too fast"), "with status 429", 2),
    ],
)
def test_what_is_no_verdict_is_told_and_what_may_pass_is_asked_again(
    told: tuple[int, str], words: str, times: int
) -> None:
    with endpoint(lambda body: told) as served:
        with pytest.raises(Silent, match=words) as silent:
            LlmJudge(section(served.url)).rate(ASKED, "x")
        assert len(served.asked) == times
    assert KEY not in str(silent.value) and "127.0.0.1" not in str(silent.value)


def test_one_that_fails_once_is_heard() -> None:
    told = iter([(500, ""), chat("[[7]]")])
    with endpoint(lambda body: next(told)) as served:
        assert LlmJudge(section(served.url)).rate(ASKED, "x") == 7.0


def test_one_that_is_away_or_never_answers_is_told() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        away = LlmJudge(section(f"http://127.0.0.1:{nobody.getsockname()[1]}/v1"))
        with pytest.raises(Silent, match=r"cannot be reached \(ConnectError\)"):
            away.rate(ASKED, "x")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()  # takes what is sent, and says nothing
        mute = LlmJudge(section(f"http://127.0.0.1:{silent.getsockname()[1]}/v1", timeout_s=0.05))
        with pytest.raises(Silent, match="did not answer in time"):
            mute.rate(ASKED, "x")


def test_one_that_goes_on_and_on_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def trickle(handler: _Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        with suppress(OSError):
            while True:
                handler.wfile.write(b" ")
                handler.wfile.flush()
                time.sleep(0.02)

    monkeypatch.setattr(_Handler, "do_POST", trickle)
    with endpoint(lambda body: chat("")) as slow, pytest.raises(Silent, match="did not answer in time"):
        LlmJudge(section(slow.url, timeout_s=0.2)).rate(ASKED, "x")
    monkeypatch.setattr(judges, "MAX_BYTES", 3)
    with endpoint(lambda body: chat("")) as long, pytest.raises(Silent, match="too long"):
        LlmJudge(section(long.url)).rate(ASKED, "x")


def test_an_address_that_is_none_fails_nothing_else() -> None:
    with pytest.raises(Silent, match="cannot be reached"):
        LlmJudge(section("http://[::")).rate(ASKED, "x")


def test_a_rule_prefers_what_matches() -> None:
    judge: Judge = judge_of(JudgeSection(kind="rule", pattern=r"^(\S+\s*){1,2}$"))
    assert isinstance(judge, RuleJudge)
    assert (judge.rate(ASKED, "It is."), judge.rate(ASKED, "It is Paris.")) == (1.0, 0.0)
    assert judge.prefer(ASKED, "It is.", "It is Paris.") == 1.0
    assert judge.prefer(ASKED, "It is Paris.", "Yes.") == 0.0
    assert judge.prefer(ASKED, "It is Paris.", "So it must be.") == 0.5


def test_a_conversation_is_read_whole() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    ]
    assert as_text(messages) == (
        'system: Be brief.\n\nassistant: [{"id": "1"}]\n\nuser: [{"type": "text", "text": "Hi"}]'
    )
