"""What a crowd did: its turns, what it was answered, and what it sent, counted."""

from __future__ import annotations

from dataclasses import dataclass, field


class DemoStopped(RuntimeError):
    """The demo cannot go on; the message says in which phase and why."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the users' client asks for answers."""

    max_tokens: int = 48
    temperature: float = 0.6
    top_p: float = 0.9


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer as the client got it; `adapter` is the response's system_fingerprint."""

    id: str
    text: str
    adapter: str
    finish_reason: str


@dataclass(frozen=True, slots=True)
class Turn:
    """One chat and what the user did with the answer. `up` is None without a judgement; an edit judges as not up."""

    at_s: float  # since the crowd opened, when the judgement was acknowledged
    phase: str
    user: str
    prompt: str
    answer: str
    adapter: str
    finish_reason: str
    reaction: str  # thumb | edit | nothing
    up: bool | None
    liked: bool | None  # the hidden truth before flips; None where thumbs are a coin
    first: bool  # the user's first judgement


@dataclass(slots=True)
class Tally:
    """What went over the wire, counted by the client."""

    chat: int = 0
    streamed: int = 0
    feedback_posts: int = 0
    reads: int = 0
    failures: list[str] = field(default_factory=list)
    thumbs_sent: int = 0  # distinct thumbs
    edits_sent: int = 0  # distinct edits
    resent: int = 0  # thumbs and edits sent once more with the same key
    duplicates: int = 0  # of those, answered as the duplicate of the first
    pending: int = 0  # answered 202 though the completion was known

    @property
    def total(self) -> int:
        return self.chat + self.feedback_posts + self.reads
