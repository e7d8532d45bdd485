"""What a replica says that cannot answer, in OpenAI's shape, for its gateway. Pure."""

from __future__ import annotations

import json

from pydantic import ValidationError

from kto_ray.records.replicas import LACKED


def unavailable(message: str) -> str:
    """Another replica may answer."""
    return json.dumps({"error": {"message": message, "type": LACKED, "param": "model", "code": 503}})


def bad_request(error: ValidationError) -> str:
    first = error.errors()[0]
    param = ".".join(str(part) for part in first["loc"]) or None
    message = f"{param or 'request'}: {first['msg']}"
    return json.dumps({"error": {"message": message, "type": "invalid_request_error", "param": param, "code": 400}})
