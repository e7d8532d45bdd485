"""What the document promises, tried with what it allows and what it does not: no 5xx, every answer as described.

Some hundreds of cases here; `make slow` tries more than 5,000.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from kto_ray.records.keys import Scope
from kto_ray.records.replicas import ReplicaReport
from kto_ray.store import keys, replicas
from tests.api.conftest import Api

CHECKS = [not_a_server_error, response_schema_conformance, status_code_conformance, content_type_conformance]
FEW, MANY = 5, 110  # cases of an operation and mode
BODIES = 8  # times as many of an operation that takes a body


def tried(api: Api, monkeypatch: pytest.MonkeyPatch, examples: int) -> Counter[tuple[str, int]]:
    """How often each path was answered with each status, as the document says."""
    monkeypatch.setattr("kto_ray.serve.gateway.loop.ANSWER_S", 0.0)  # no controller runs here
    serve = api.config.serve.model_copy(update={"heartbeat_timeout_s": 3600})
    monkeypatch.setattr(api.door.viewer, "_config", api.config.model_copy(update={"serve": serve}))
    with api.store.write() as tx:  # a replica that stays ready
        replicas.report(tx, ReplicaReport("r", "node", 1, (), 0.0), 15.0)
        _, key = keys.create(tx, "app", [Scope.CHAT, Scope.FEEDBACK, Scope.ADMIN], False, api.config.salt, 1.0)
    api.door.viewer.refresh()
    headers = {"Authorization": f"Bearer {key}"}
    schema = schemathesis.openapi.from_asgi("/openapi.json", api.client.app, headers=headers)
    answers: Counter[tuple[str, int]] = Counter()
    found: Any
    for found in schema.get_all_operations():
        operation = found.ok()
        number = examples * (BODIES if operation.body else 1)
        answers.update(_answers(operation, GenerationMode.POSITIVE, number, headers))
        try:
            answers.update(_answers(operation, GenerationMode.NEGATIVE, number, headers))
        except Unsatisfiable:  # no text is a wrong name, and where nothing is taken nothing is wrong
            assert not operation.body
    return answers


def _answers(operation: Any, mode: GenerationMode, number: int, headers: dict[str, str]) -> list[tuple[str, int]]:
    answers = []

    @settings(
        max_examples=number,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def one(case: Any) -> None:
        answers.append((operation.path, case.call_and_validate(checks=CHECKS, headers=headers).status_code))

    one()
    return answers


def test_some_of_what_a_client_may_send(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = tried(api, monkeypatch, FEW)
    assert answers.total() > 250
    for path in ("/v1/chat/completions", "/v1/responses"):
        assert answers[path, 200] and answers[path, 400], "what is taken is tried, and what is not"


@pytest.mark.slow
def test_thousands_of_what_a_client_may_send(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tried(api, monkeypatch, MANY).total() >= 5_000
