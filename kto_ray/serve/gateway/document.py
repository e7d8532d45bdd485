"""The OpenAPI document: what FastAPI reads in the routes, and the bodies and headers that the gateway reads itself."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from kto_ray.serve.gateway.bodies import ChatBody, FeedbackBody, ResponsesBody, headers
from kto_ray.serve.gateway.guard import TABLE, TOKEN_HEADER, Rule, named

BODIES = (ChatBody, FeedbackBody, ResponsesBody)
COMPONENT = "#/components/schemas/{model}"
NAMED = (headers.USER, headers.TASK, headers.SYSTEM, headers.CONVERSATION, headers.MESSAGE)
IDEMPOTENT = (headers.IDEMPOTENCY_KEY,)

SCHEMES = {
    "key": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key with one of the scopes. None is needed on loopback while there are no keys, nor "
        "where an authenticating proxy says who asks.",
    },
    "feedback_token": {
        "type": "apiKey",
        "in": "header",
        "name": TOKEN_HEADER,
        "description": "What an answer carried in its header of this name: it judges that answer.",
    },
}


def body_of(model: str, *named: str) -> dict[str, Any]:
    """The part of a route's document that says which of BODIES it takes, and which headers."""
    schema = {"$ref": COMPONENT.format(model=model)}
    content = {"application/json": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}, "parameters": [_header(name) for name in named]}


def _security(rule: Rule) -> list[dict[str, list[str]]]:
    """One of these opens a route."""
    if rule.open:
        return []
    return [{"key": sorted(rule.scopes)}, *([{"feedback_token": list[str]()}] if rule.token else []), {}]


def _header(name: str) -> dict[str, Any]:
    schema = {"type": "string", "maxLength": headers.LIMITS[name]}
    words = "UTF-8 or percent-encoded; its length is counted in decoded characters"
    return {"name": name, "in": "header", "required": False, "schema": schema, "description": words}


def install(app: FastAPI) -> None:
    """Have an app's document define BODIES beside what its routes return, and say what opens each."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        _, defined = models_json_schema([(body, "validation") for body in BODIES], ref_template=COMPONENT)
        document["components"]["schemas"] |= defined["$defs"]
        document["components"]["securitySchemes"] = SCHEMES
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                operation["security"] = _security(TABLE[named(method.upper(), path)])
        return document

    app.openapi = openapi  # type: ignore[method-assign]
