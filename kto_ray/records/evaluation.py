"""What the gate looks at, and its verdict. Free of torch, so that whoever collects answers need not load it."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kto_ray.records.completions import Message


@dataclass(frozen=True, slots=True)
class Tokens:
    """A prompt and an answer whose log-probability is asked, as token ids. The answer's end-of-turn token counts."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.completion)


@dataclass(frozen=True, slots=True)
class GuardAnswer:
    """One answer as the client got it. `finish_reason` ("stop", "length") and tokens are the engine's.

    `right` says whether it meets the check of its prompt, None where there is none; `tag`, what that is reported under.
    """

    messages: tuple[Message, ...]
    text: str
    finish_reason: str | None
    tokens: Tokens = Tokens((), ())  # none where only the text is looked at
    right: bool | None = None
    tag: str = ""
    weight: float = 1.0

    @property
    def prompt(self) -> str:
        """The last message's text, for reports."""
        return str(self.messages[-1]["content"])


@dataclass(frozen=True, slots=True)
class HeldOut:
    """One held-out judgement, tokenised as training saw it. `user` is the user's hash: the unit of the bootstrap."""

    example_id: str
    user: str
    desirable: bool
    tokens: Tokens
    completion: str = ""  # whose text is judged
    adapter: str = ""  # the version that answered
    source: str = ""

    @property
    def of_served(self) -> bool:
        """Whether it is a user's judgement of what `adapter` said: no import, no reviewer's, no better text of an
        edit."""
        return self.source == "thumb" or (self.source == "edit" and not self.desirable)


@dataclass(frozen=True, slots=True)
class Thumbed:
    """A held-out judgement as a person reads it: what was asked, what was answered, and what its user made of that."""

    user: str
    messages: tuple[Message, ...]
    text: str
    desirable: bool


@dataclass(frozen=True, slots=True)
class Opinion:
    """What a judge thinks of candidate and champion, as figures; `lacking` says in words which are not known, and why.
    Nothing where nobody was asked."""

    figures: Mapping[str, float] = field(default_factory=dict)
    lacking: tuple[str, ...] = ()


def held_out(table: Any) -> tuple[HeldOut, ...]:
    """Rows of a snapshot's holdout shards: a pyarrow Table with the columns example_id, user_hash, label, prompt_ids,
    completion_ids, completion_id, adapter and source."""
    columns = ["example_id", "user_hash", "label", "prompt_ids", "completion_ids"]
    columns += ["completion_id", "adapter", "source"]
    return tuple(
        HeldOut(
            example_id=row["example_id"],
            user=row["user_hash"],
            desirable=bool(row["label"]),
            tokens=Tokens(tuple(row["prompt_ids"]), tuple(row["completion_ids"])),
            completion=row["completion_id"],
            adapter=row["adapter"],
            source=row["source"],
        )
        for row in table.select(columns).to_pylist()
    )


@dataclass(frozen=True, slots=True)
class GateReport:
    """The gate's verdict on one adapter: `metrics` are the figures, `reasons` say the verdict in words."""

    adapter: str
    snapshot: str
    created_at: float
    decision: GateDecision
    reasons: tuple[str, ...]
    metrics: Mapping[str, float]
    # Guard prompts: prompt, champion, candidate, and of those with a check also tag and who is right
    answers: tuple[Mapping[str, str], ...] = ()


class GateDecision(enum.StrEnum):
    PROMOTE_TO_CANARY = "promote-to-canary"
    REJECT = "reject"
    INCONCLUSIVE = "inconclusive"
