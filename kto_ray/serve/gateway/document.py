"""The OpenAPI document: what FastAPI reads in the routes, and the bodies that the gateway parses itself."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from kto_ray.serve.gateway.bodies import ChatBody, FeedbackBody

BODIES = (ChatBody, FeedbackBody)
COMPONENT = "#/components/schemas/{model}"


def body_of(model: str) -> dict[str, Any]:
    """The part of a route's document that says which of BODIES it takes."""
    schema = {"$ref": COMPONENT.format(model=model)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def install(app: FastAPI) -> None:
    """Have an app's document define BODIES beside what its routes return."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        _, defined = models_json_schema([(body, "validation") for body in BODIES], ref_template=COMPONENT)
        document["components"]["schemas"] |= defined["$defs"]
        return document

    app.openapi = openapi  # type: ignore[method-assign]
