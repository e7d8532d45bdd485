"""An example: a prompt, an answer, and whether it is desirable; what KTO learns from."""

from __future__ import annotations

import json
from dataclasses import dataclass

from kto_ray.records.completions import Json, Message

# Of a completion's params, what the chat template is given beside the messages.
OF_PROMPT = frozenset({"tools", "chat_template_kwargs", "reasoning_effort"})


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
    shaped: bool = False  # its prompt holds more than the messages (`OF_PROMPT`); only its ids have it as it was read
    tool_calls: tuple[Json, ...] = ()  # beside the answer's text; only its ids have them as the model said them

    @property
    def said(self) -> str:
        """What was answered, as one text: what tells two answers apart. The ids of calls are random, and no part."""
        called = [call.get("function") for call in self.tool_calls]
        return "\n".join([self.answer, *(json.dumps(function, sort_keys=True) for function in called)])
