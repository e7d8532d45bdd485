"""An example: a prompt, an answer, and whether it is desirable; what KTO learns from."""

from __future__ import annotations

from dataclasses import dataclass

from kto_ray.records.completions import Message


@dataclass(frozen=True, slots=True)
class Example:
    """A labelled (prompt, answer) pair: the unit that KTO learns from."""

    id: str
    completion_id: str
    user: str
    messages: tuple[Message, ...]
    answer: str
    desirable: bool
    source: str  # thumb | edit | reviewer | import
    adapter: str
    created_at: float
    ended: bool = True  # False: cut off, so its end is not the policy's and must not be learnt
    prompt_ids: bytes | None = None  # these three are the completion's, the answer's ids not of an edited text
    answer_ids: bytes | None = None
    base: str | None = None
    reasoned: bool = False  # its ids begin with a reasoning
