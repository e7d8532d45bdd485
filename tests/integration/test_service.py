"""One real service for the whole file: the HTTP contract, bad input, and one turn of the loop to promotion and back."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import openai
import psutil
import pytest
from ray.serve.generated.serve_pb2 import ASGIRequest
from ray.serve.generated.serve_pb2_grpc import ASGIServiceStub

from kto_ray.data.tokens import encode, load_tokenizer
from kto_ray.model import resolve_model
from kto_ray.processor import precision
from kto_ray.records.adapters import AdapterVersion
from kto_ray.store import adapters, completions, tallies
from tests.support.service import Service, Traffic, give_labels, service

pytestmark = pytest.mark.integration
HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, free_port: Any) -> Iterator[Service]:
    with service(tmp_path_factory.mktemp("service"), free_port()) as started:
        yield started


@pytest.fixture(scope="module")
def client(run: Service) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{run.url}/v1", api_key="any", max_retries=0)


def test_a_completion_is_logged_as_the_client_got_it(run: Service, client: openai.OpenAI) -> None:
    where = {"X-Kto-Chat-Id": "k", "X-Kto-Message-Id": "m"}
    ask: dict[str, Any] = dict(model="policy", messages=HI, max_tokens=8, user="ann")
    raw = client.chat.completions.with_raw_response.create(**ask, extra_headers=where)
    answer = raw.parse()
    assert raw.headers["x-kto-completion-id"] == answer.id
    assert (answer.model, answer.system_fingerprint) == ("policy", "policy@base")
    with run.store.read() as tx:
        row = completions.get(tx, answer.id)
    assert row is not None and row.text == answer.choices[0].message.content
    assert (row.user, row.adapter, row.status) == ("ann", "policy@base", "complete")
    assert row.external is not None and row.external.conversation == "k"
    assert answer.usage is not None
    assert (row.prompt_tokens, row.completion_tokens) == (answer.usage.prompt_tokens, answer.usage.completion_tokens)
    told = run.get(f"/v1/completions/{answer.id}")
    assert told["text"] == row.text and told["feedback"] == []


CALL = {"id": "c1", "type": "function", "function": {"name": "tide", "arguments": '{"port": "Hull"}'}}
SERVED: dict[str, dict[str, Any]] = {
    "a question": {},
    "a stream": {"stream": True},
    "cut off": {"max_tokens": 3, "stream": True},
    "a stop string": {"stop": ["e"]},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": t} for t in ("One.", "Two.")]}]},
    "a developer": {"messages": [{"role": "developer", "content": "Be brief."}, *HI]},
    "a tool": {
        "messages": [
            *HI,
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c1", "content": "high at 4"},
            {"role": "user", "content": "So when?"},
        ]
    },
}


@pytest.mark.parametrize("what", SERVED)
def test_what_was_served_is_what_is_trained(run: Service, what: str) -> None:
    """The engine's ids are in the row; rendered here, an import of the same words would have the same prompt."""
    body = {"model": "policy", "messages": HI, "max_tokens": 24, "temperature": 0.0, **SERVED[what]}
    with run.client.stream("POST", "/v1/chat/completions", json=body) as told:
        text = told.read().decode()
        assert told.status_code == 200 and "token_ids" not in text, text
        name = told.headers["x-kto-completion-id"]
    with run.store.read() as tx:
        row = completions.get(tx, name)
    assert row is not None and row.prompt_ids is not None and row.answer_ids is not None
    assert row.base == run.config.model.mark and len(row.answer_ids) == 4 * row.completion_tokens
    tokenizer = load_tokenizer(resolve_model(run.config.model), None)
    read, said = (np.frombuffer(ids, "<i4").tolist() for ids in (row.prompt_ids, row.answer_ids))
    rendered = encode(tokenizer, row.messages, row.text)
    assert rendered is not None and tokenizer.decode(read) == tokenizer.decode(rendered[0])
    assert tokenizer.decode(said, skip_special_tokens=True).startswith(row.text)
    ends = tokenizer.eos_token_id in said
    assert ends is (row.finish_reason == "stop" and row.stop_reason is None), "an end is there where the policy made it"
    assert (row.stop_reason == "e") is (what == "a stop string")


def test_a_stream_is_durable_before_its_end(run: Service, client: openai.OpenAI) -> None:
    text, name = "", ""
    stream: Any = client.chat.completions.create(model="policy", messages=HI, max_tokens=12, stream=True)  # type: ignore[arg-type]
    for chunk in stream:
        name = chunk.id
        text += chunk.choices[0].delta.content or ""
        if chunk.choices[0].finish_reason:  # the end is in sight: the row must be there already
            with run.store.read() as tx:
                row = completions.get(tx, name)
            assert row is not None and row.text == text and row.first_token_s is not None
    assert name.startswith("chatcmpl-") and text


def test_usage_is_streamed_only_to_who_asked(client: openai.OpenAI) -> None:
    ask: dict[str, Any] = dict(model="policy", messages=HI, max_tokens=4, stream=True)
    assert all(chunk.usage is None for chunk in client.chat.completions.create(**ask))
    asked = list(client.chat.completions.create(**ask, stream_options={"include_usage": True}))
    assert asked[-1].usage is not None and asked[-1].usage.completion_tokens == 4


def test_a_client_that_leaves_is_logged_as_aborted(run: Service) -> None:
    body = {"model": "policy", "messages": HI, "stream": True, "max_tokens": 200, "min_tokens": 200, "user": "leaver"}
    with run.client.stream("POST", "/v1/chat/completions", json=body) as stream:
        for line in stream.iter_lines():
            if line.startswith("data:"):
                name = json.loads(line[5:])["id"]
                break

    def logged() -> Any:
        with run.store.read() as tx:
            return completions.get(tx, name)

    row = run.wait("the aborted row", logged, 30)
    assert row.status == "aborted"


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ({"messages": []}, 400, "messages"),
        ({"messages": HI, "model": "gpt-9"}, 404, "policy@base"),
        ({"messages": HI, "model": "policy@v9-abcdef"}, 404, "policy@v9-abcdef"),
        ({"messages": [{"role": "user", "content": "word " * 2000}]}, 400, "maximum context length"),
        ({"messages": HI, "temperature": "hot"}, 400, "temperature"),
        ({"messages": HI, "temperature": -1}, 400, "temperature"),
        ({"messages": HI, "stream": True, "top_p": 7}, 400, "top_p"),
        ({"messages": HI, "max_tokens": -5}, 400, "max_tokens"),
        ({"messages": HI, "n": 3}, 400, "n must be 1"),
    ],
)
def test_bad_chat_gets_openais_error(run: Service, body: dict[str, Any], status: int, told: str) -> None:
    answer = run.client.post("/v1/chat/completions", json=body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) >= {"message", "type", "param", "code"} and told in error["message"]


TIDE = {"type": "function", "function": {"name": "tide", "parameters": {"type": "object"}}}
SENT: dict[str, tuple[dict[str, Any], int, bool]] = {  # what is said, the status, whether the words were forced
    "an empty list of tools": ({"tools": []}, 200, False),
    "a choice among no tools": ({"tool_choice": "auto"}, 200, False),
    "tools that are not to be called": ({"tools": [TIDE], "tool_choice": "none"}, 200, False),
    "tools, and an engine that reads no calls": ({"tools": [TIDE]}, 400, False),
    "usage of no stream": ({"stream_options": {"include_usage": True}}, 200, False),
    "a model of null": ({"model": None}, 200, False),
    "nulls": (
        {"messages": [*HI, {"role": "assistant", "content": "Red.", "refusal": None, "audio": None}, *HI]},
        200,
        False,
    ),
    "a thought": (
        {"messages": [*HI, {"role": "assistant", "content": "4", "reasoning_content": "2 + 2"}, *HI]},
        200,
        False,
    ),
    "log probabilities": ({"logprobs": True, "top_logprobs": 2}, 200, False),
    "a begun answer": (
        {"messages": [*HI, {"role": "assistant", "content": "Two colours are"}], "continue_final_message": True},
        200,
        True,
    ),
    "biased words": ({"logit_bias": {"7": 100}}, 200, True),
    "words of a shape": ({"response_format": {"type": "json_object"}}, 200, True),
    "no end": ({"ignore_eos": True}, 200, True),
    "a kind of template": ({"chat_template_kwargs": {"enable_thinking": False}, "reasoning_effort": "low"}, 200, False),
    "a token that is none": ({"stop_token_ids": [2**31 - 1]}, 400, False),
    "a bias on a token that is none": ({"logit_bias": {"9999999": 1}}, 400, False),
    "more than the model holds": ({"max_tokens": 10**6}, 400, False),
}


@pytest.mark.parametrize("what", SENT)
def test_what_clients_send_is_served_or_refused_in_words(run: Service, what: str) -> None:
    said, status, forced = SENT[what]
    answer = run.client.post("/v1/chat/completions", json={"messages": HI, "max_tokens": 4, **said})
    assert answer.status_code == status, answer.text
    if status == 200:
        with run.store.read() as tx:
            row = completions.get(tx, answer.json()["id"])
        assert row is not None and row.forced is forced and row.completion_tokens <= 4
    else:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_an_answer_without_a_limit_of_its_own_has_the_configs(run: Service) -> None:
    answer = run.client.post("/v1/chat/completions", json={"messages": HI, "ignore_eos": True}, timeout=120).json()
    assert answer["usage"]["completion_tokens"] == run.config.serve.max_output_tokens


def test_a_response_streams_by_the_unchanged_client(run: Service, client: openai.OpenAI) -> None:
    events = list(client.responses.create(model="policy", input="Hi", max_output_tokens=12, stream=True))
    last = events[-1]
    assert last.type in ("response.completed", "response.incomplete")
    deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert deltas and deltas == last.response.output_text
    with run.store.read() as tx:
        row = completions.get(tx, last.response.id)
    assert row is not None and (row.text, row.status) == (deltas, "complete") and row.answer_ids


def test_a_client_that_leaves_before_a_whole_answer_frees_the_engine(run: Service) -> None:
    long = {"messages": HI, "max_tokens": 350, "ignore_eos": True, "user": "impatient"}
    with pytest.raises(httpx.ReadTimeout):
        run.client.post("/v1/chat/completions", json=long, timeout=1.0)

    def logged() -> Any:
        with run.store.read() as tx:
            return completions.of_user(tx, "impatient") or None

    [row] = run.wait("the aborted row", logged, 10)  # the whole answer would take longer
    assert row.status == "aborted"


def test_bad_bodies_and_paths(run: Service) -> None:
    for answer in (
        run.client.post("/v1/chat/completions", content=b"{broken"),
        run.client.post("/v1/feedback", content=b"[]"),
        run.client.post("/v1/feedback", json={"completion_id": "c", "kind": "thumb"}),
        run.client.get("/v1/nothing"),
        run.client.get("/v1/completions/none"),
        run.client.delete("/v1/feedback/none"),
        run.client.post("/v1/rollout/explode"),
        run.client.post("/v1/rollout/promote"),
    ):
        assert 400 <= answer.status_code < 500 and answer.json()["error"]["message"], answer.text


def test_who_reaches_this_machine_reaches_no_port_without_the_token(run: Service) -> None:
    """Serve's replicas listen on every address; the first act of a call would be to unpickle what came with it."""
    serve = psutil.Process(run.process.pid)
    found = {
        (process.name(), one.laddr)
        for process in (serve, *serve.children(recursive=True))
        for one in process.net_connections("tcp")
        if one.status == psutil.CONN_LISTEN
    }
    assert any(where.port == run.config.http.port and where.ip == "127.0.0.1" for _, where in found)
    open_to_others = {(name, where) for name, where in found if not where.ip.removeprefix("::ffff:").startswith("127.")}
    assert all(name.startswith("ray::ServeReplica") for name, _ in open_to_others), open_to_others
    for _, where in open_to_others:
        with grpc.insecure_channel(f"127.0.0.1:{where.port}") as channel, pytest.raises(grpc.RpcError) as told:
            ASGIServiceStub(channel).HandleRequest(ASGIRequest(), timeout=10)
        assert told.value.code() is grpc.StatusCode.UNAUTHENTICATED, where


def test_feedback_once_pending_and_withdrawn(run: Service) -> None:
    name = run.chat().json()["id"]
    first = run.thumb(name, True, **{"Idempotency-Key": "k1"})
    assert first.status_code == 201 and first.json()["status"] == "recorded"
    again = run.thumb(name, True, **{"Idempotency-Key": "k1"})
    assert again.status_code == 200 and again.json()["feedback_id"] == first.json()["feedback_id"]
    assert run.thumb(name, False, **{"Idempotency-Key": "k1"}).status_code == 409
    assert run.thumb("chatcmpl-unknown", True).status_code == 202
    assert run.client.delete(f"/v1/feedback/{first.json()['feedback_id']}").status_code == 200
    assert run.get(f"/v1/completions/{name}")["feedback"][0]["withdrawn_at"] is not None


def test_models_health_and_metrics(run: Service, client: openai.OpenAI) -> None:
    assert {"policy", "policy@champion", "policy@base"} <= {model.id for model in client.models.list()}
    assert run.get("/healthz")["status"] == "alive" and run.get("/readyz")["ready"]
    assert "kto_ray_feedback_events" in run.client.get("/metrics").text


def test_a_damaged_adapter_is_refused_and_chat_goes_on(run: Service, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8}')
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    broken = AdapterVersion("policy@v99-broken", 99, time.time(), str(tmp_path), "0" * 64, None, None, "policy@base", 8)
    with run.store.write() as tx:
        adapters.insert(tx, broken)
        adapters.set_alias(tx, "challenger", broken.name, time.time())

    def refused() -> Any:
        errors = [replica["errors"] for replica in run.get("/readyz")["replicas"]]
        return next((e[broken.name]["reason"] for e in errors if broken.name in e), None)

    try:
        assert "adapter_model.safetensors" in run.wait("the refusal", refused, 30)
        assert run.chat().status_code == 200
        assert run.client.post("/v1/chat/completions", json={"messages": HI, "model": broken.name}).status_code == 404
    finally:
        with run.store.write() as tx:
            adapters.set_alias(tx, "challenger", None, time.time())


def test_no_step_of_the_engine_sleeps_through_its_wakeup(run: Service) -> None:
    """vLLM's processes look for lost notifications after 5 s by themselves: a lone token then takes that long."""
    began = time.monotonic()
    for _ in range(20):
        assert run.chat(max_tokens=1).status_code == 200
        time.sleep(0.05)  # the engine falls asleep
    assert time.monotonic() - began < 20


def test_the_loop_trains_gates_tests_promotes_and_rolls_back(run: Service) -> None:
    with run.store.read() as tx:
        before = tallies.total(tx).stored
    given = give_labels(run, users=30)
    with Traffic(run) as traffic:
        ended = run.wait_stage("done", timeout_s=480)
    assert ended["outcome"] == "promoted", ended
    assert traffic.failures == []
    with run.store.read() as tx:
        assert tallies.total(tx).stored == before + given + traffic.thumbs
    told = run.get("/v1/adapters")
    champion = told["aliases"]["champion"]
    assert champion == ended["adapter"] and told["aliases"]["previous"] == "policy@base"
    sections, served = told["adapters"][-1]["manifest"]["config"], run.get("/readyz")["replicas"][0]["dtype"]
    assert served == precision("cpu", "auto").dtype == sections["model"]["dtype"] == sections["train"]["dtype"]
    gate = told["adapters"][-1]["gate"]
    assert gate["decision"] == "promote-to-canary" and gate["metrics"]["n_guard"] > 0
    test = run.get("/v1/rollout")["rollout"]
    assert test["status"] == "promoted" and test["interval"][0] > 0
    assert run.get(f"/v1/loop/rounds/{ended['id']}")["history"] and ended["train_metrics"]["loss_first"] > 0
    assert run.wait("the flip", lambda: _answers_with(run, champion), 10)
    _lineage_is_told(run, champion)
    back = run.client.post("/v1/rollout/rollback", params={"champion": champion})
    assert back.status_code == 200, back.text
    again = run.client.post("/v1/rollout/rollback", params={"champion": champion})
    assert again.status_code == 409 and "is not the champion" in again.text, "a second one does not roll forward"
    assert run.wait("the rollback", lambda: _answers_with(run, "policy@base"), 10)
    assert run.client.post("/v1/chat/completions", json={"messages": HI, "model": champion}).status_code == 200


def _lineage_is_told(run: Service, champion: str) -> None:
    """Over HTTP: from a user's thumb to the champion that learnt from it, and from there back."""
    learnt = (told for i in range(30) if (told := run.get(f"/v1/lineage/user-{i}"))["adapters"])
    user = next(learnt)
    assert (user["kind"], user["adapters"][0]["adapter"]) == ("user", champion)
    assert user["adapters"][0]["aliases"] == ["champion"] and user["snapshots"][0]["rows"]["train"] > 0
    for told in (run.get(f"/v1/lineage/{name}") for name in user["completions"]):
        assert told["kind"] == "completion" and set(told["feedback"]) <= set(user["feedback"])
        assert [(a["adapter"], a["arm"]) for a in told["answered_by"]] == [("policy@base", "champion")]
    adapter = run.get(f"/v1/lineage/{champion}")
    assert (adapter["kind"], adapter["snapshot"]) == ("adapter", user["snapshots"][0]["snapshot"])
    assert [(r["arm"], r["status"]) for r in adapter["rollouts"]] == [("challenger", "promoted")]
    assert adapter["rounds"] == [1] and adapter["ancestors"] == [] and adapter["completions"] > 0
    unknown = run.client.get("/v1/lineage/nobody")
    assert unknown.status_code == 404 and "nobody" in unknown.json()["error"]["message"]


def _answers_with(run: Service, adapter: str) -> bool | None:
    answer: httpx.Response = run.chat(max_tokens=1)
    return True if answer.json()["system_fingerprint"] == adapter else None
