"""What is wrong with an answer by its words alone: it asks back, or its calls are such that no tool can take. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from kto_ray.records.completions import Completion, Json

TAIL = 100  # characters at the end of a text, in which its last sentence ends


def of(completion: Completion) -> list[str]:
    """The faults of `kto_ray.records.trials` that the words of an answer have. One that broke off was not done."""
    if completion.status != "complete":
        return []
    offered = completion.params.get("tools") or ()
    has = {"asked_back": asks_back(completion.text), "tool_error": miscalls(completion.tool_calls, offered)}
    return [name for name, found in has.items() if found]


def asks_back(text: str) -> bool:
    """Whether the last thing said is a question."""
    return re.search(r"[?？]\W*$", text.rstrip()[-TAIL:]) is not None


def miscalls(calls: Sequence[Json], offered: Sequence[Json]) -> bool:
    """Whether a call names a tool that was not offered, or its arguments are no JSON object; none at all are fine."""
    names = {tool["function"]["name"] for tool in offered}
    return any(_of(call).get("name") not in names or not _are_arguments(_of(call).get("arguments")) for call in calls)


def _of(call: Json) -> Mapping[str, Any]:
    found: Mapping[str, Any] = call.get("function") or {}
    return found


def _are_arguments(told: Any) -> bool:
    """It is asked where the row of the answer is written: nothing that a model says may raise here."""
    try:
        return isinstance(json.loads(told or "{}"), dict)
    except (ValueError, TypeError, RecursionError):  # no JSON; no text; nested beyond what Python reads
        return False
