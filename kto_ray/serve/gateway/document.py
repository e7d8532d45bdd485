"""The OpenAPI document: what FastAPI reads in the routes, and the bodies and headers that the gateway reads itself."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from kto_ray.serve.gateway.bodies import ChatBody, FeedbackBody, ResponsesBody, headers

BODIES = (ChatBody, FeedbackBody, ResponsesBody)
COMPONENT = "#/components/schemas/{model}"
NAMED = (headers.USER, headers.TASK, headers.SYSTEM, headers.CONVERSATION, headers.MESSAGE)
IDEMPOTENT = (headers.IDEMPOTENCY_KEY,)


def body_of(model: str, *named: str) -> dict[str, Any]:
    """The part of a route's document that says which of BODIES it takes, and which headers."""
    schema = {"$ref": COMPONENT.format(model=model)}
    content = {"application/json": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}, "parameters": [_header(name) for name in named]}


def _header(name: str) -> dict[str, Any]:
    schema = {"type": "string", "maxLength": headers.LIMITS[name]}
    words = "UTF-8 or percent-encoded; its length is counted in decoded characters"
    return {"name": name, "in": "header", "required": False, "schema": schema, "description": words}


def install(app: FastAPI) -> None:
    """Have an app's document define BODIES beside what its routes return."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        _, defined = models_json_schema([(body, "validation") for body in BODIES], ref_template=COMPONENT)
        document["components"]["schemas"] |= defined["$defs"]
        return document

    app.openapi = openapi  # type: ignore[method-assign]
