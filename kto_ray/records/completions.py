"""What the policy answered, as the client got it."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# A chat message and a JSON object keep the caller's shape (OpenAI's schema is open), hence Mapping.
Message = Mapping[str, Any]
Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ExternalRef:
    """How another system (Open WebUI, LibreChat) names a completion. Without a message it means the conversation."""

    system: str
    conversation: str
    message: str | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer of the policy, as the client got it.

    `model` is what the client asked for, `adapter` the immutable version that answered (`policy@v7-3fa9c1`, or
    `policy@base`). `status` is "complete", "aborted" (the client left) or "failed".

    `prompt_ids` and `answer_ids` are the tokens that the engine read and said (int32, little-endian; None where nobody
    told: an import), made by the tokenizer of `base`; they are what is trained, `messages` and `text` are for people.
    """

    id: str
    created_at: float
    model: str
    adapter: str
    arm: Arm
    messages: tuple[Message, ...]
    text: str
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int
    status: str = "complete"
    user: str | None = None
    rollout: str | None = None
    task: str | None = None
    external: ExternalRef | None = None
    params: Json = field(default_factory=dict)
    latency_s: float = 0.0
    first_token_s: float | None = None
    principal: str | None = None  # whose key asked; None: no keys are in use
    forced: bool = False  # the client forced or biased the words: they are not the policy's own, and never train
    prompt_ids: bytes | None = None
    answer_ids: bytes | None = None
    stop_reason: str | None = None  # the stop string or token that ended it, where that was not the end of turn
    reasoning: str | None = None
    tool_calls: tuple[Json, ...] = ()
    base: str | None = None  # `ModelSection.mark`
    holdback: str | None = None  # the holdback of which its user is a randomised unit
    solicited: bool = False  # drawn by chance to ask its user for a thumb
    archive: str | None = None  # the archive that holds messages, text and ids, once retention has moved them there
    seq: int | None = field(default=None, compare=False)  # its place in the order of the store; None: not stored yet


class Arm(enum.StrEnum):
    """Which side of the A/B test answered. PINNED requests named a version and never count in a test; HOLDBACK are of
    those who stay on the previous champion for a while."""

    CHAMPION = "champion"
    CHALLENGER = "challenger"
    HOLDBACK = "holdback"
    PINNED = "pinned"
    IMPORT = "import"
