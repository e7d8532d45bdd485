"""The OpenAPI document: every route with what it takes and returns, and every reference in it defined."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.api.conftest import Api

TEXT = {"/metrics"}
OPENAIS = {"/v1/chat/completions", "/v1/responses"}  # whose answers are OpenAI's, not ours


@pytest.fixture
def document(api: Api) -> dict[str, Any]:
    found: dict[str, Any] = api.client.get("/openapi.json").json()
    return found


def test_every_route_says_what_it_returns(document: dict[str, Any]) -> None:
    for path, methods in document["paths"].items():
        for operation in methods.values():
            first = next(iter(operation["responses"].values()))
            if path in TEXT | OPENAIS:
                continue
            schema = first["content"]["application/json"]["schema"]
            assert "$ref" in schema or all("$ref" in one for one in schema["anyOf"]), path
            assert "422" not in operation["responses"], "errors have OpenAI's shape"
            assert operation["responses"]["4XX"]["content"]["application/json"]["schema"]["$ref"].endswith("ErrorBody")


def test_every_route_says_what_opens_it(document: dict[str, Any]) -> None:
    opens = {
        path: {m: operation["security"] for m, operation in found.items()} for path, found in document["paths"].items()
    }
    assert opens["/v1/feedback"]["post"] == [{"key": ["feedback", "reviewer"]}, {"feedback_token": []}, {}]
    assert opens["/v1/users/{user}"]["delete"] == [{"key": ["admin"]}, {}]
    assert opens["/healthz"]["get"] == []
    assert set(document["components"]["securitySchemes"]) == {"key", "feedback_token"}


def test_every_reference_is_defined(document: dict[str, Any]) -> None:
    named = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert named <= set(document["components"]["schemas"]) and {"FeedbackBody", "External", "ChatBody"} <= named


@pytest.mark.parametrize("path", ["/v1/feedback", "/v1/chat/completions", "/v1/responses"])
def test_a_body_that_is_parsed_by_hand_is_described(document: dict[str, Any], path: str) -> None:
    body = document["paths"][path]["post"]["requestBody"]
    assert body["required"] and body["content"]["application/json"]["schema"]["$ref"]
