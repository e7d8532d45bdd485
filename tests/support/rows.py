"""Hand-made completions and what users say of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kto_ray.records.completions import Arm, Completion
from kto_ray.records.feedback import Feedback, FeedbackKind

_COMPLETION = Completion(
    id="c1",
    created_at=100.0,
    model="policy",
    adapter="policy@base",
    arm=Arm.CHAMPION,
    messages=({"role": "user", "content": "Hi"},),
    text="Hello.",
    finish_reason="stop",
    prompt_tokens=3,
    completion_tokens=2,
    user="ann",
)


def completion(name: str = "c1", **changes: Any) -> Completion:
    """An answer to ann, asked for at 100."""
    return replace(_COMPLETION, id=name, **changes)


def thumb(name: str, of: str | None = "c1", value: bool | None = True, **changes: Any) -> Feedback:
    """A thumb of ann's at 200, up."""
    made = Feedback(id=name, created_at=200.0, kind=FeedbackKind.THUMB, completion_id=of, user="ann", value=value)
    return replace(made, **changes)
