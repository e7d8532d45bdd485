"""What the headers of a request say: names, as UTF-8 bytes or percent-encoded; both are the same name. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import unquote_to_bytes

from kto_ray.serve.gateway.bodies import limits
from kto_ray.serve.gateway.bodies.reading import text_fault
from kto_ray.serve.gateway.errors import ApiError

USER, TASK, SYSTEM = "X-Kto-User-Id", "X-Kto-Task", "X-Kto-System"
CONVERSATION, MESSAGE = "X-Kto-Chat-Id", "X-Kto-Message-Id"
IDEMPOTENCY_KEY = "Idempotency-Key"
LIMITS = {USER: limits.NAME, TASK: limits.NAME, SYSTEM: limits.SYSTEM, CONVERSATION: limits.NAME, MESSAGE: limits.NAME}
LIMITS |= {IDEMPOTENCY_KEY: limits.NAME}


def header(headers: Mapping[str, str], name: str) -> str | None:
    """The text of one of LIMITS, decoded once; None where it is absent or empty.

    Args:
        headers: as ASGI servers give them, a character a byte, by names in lower case.

    Raises:
        ApiError: 400 that names the header.
    """
    raw = headers.get(name.lower())
    if not raw:
        return None
    try:
        text = unquote_to_bytes(raw.encode("latin-1")).decode()
    except UnicodeError:
        raise ApiError(400, f"{name} is not UTF-8; send UTF-8 bytes, or percent-encode them", name) from None
    if fault := text_fault(text):
        raise ApiError(400, f"{name} {fault}", name)
    if len(text) > LIMITS[name]:
        words = f"{name} must have at most {LIMITS[name]} characters, got {len(text)}; shorten it"
        raise ApiError(400, words, name)
    return text
