"""What is taken of feedback: how much, how long it waits, and what a person must look at first."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from kto_ray.config.base import Hours, Section

SignalName = Literal["regenerated", "copied", "stopped", "disagreed"]


class FeedbackSection(Section):
    """What is taken as a judgement. The limits of quarantine are far above what one person does; whoever is above them
    waits for `kto-ray feedback release` or `drop`, and neither trains nor counts meanwhile."""

    idempotency_days: float = Field(7.0, gt=0)  # that an Idempotency-Key lasts; then it is free again
    token_hours: Hours = Field(24.0, gt=0)  # that the token of an answer lasts, by which a browser judges it
    pending_days: float = Field(30.0, gt=0)  # that feedback waits for its completion; then it is an orphan for good
    # Which turns a judgement of a whole conversation speaks of. last: it is mostly pressed under the last answer, and
    # all would make many labels of one act, on answers that nobody looked at again
    spread: Literal["none", "last", "all"] = "last"
    # Of the answers of an A/B test, the share that asks for a thumb (`kto_ray.ask` in the answer, which the application
    # shows): drawn by chance, they are rated by others than those who judge by themselves
    solicit_share: float = Field(0.0, ge=0, le=0.2)
    signals: dict[SignalName, Literal["up", "down"]] = Field(default_factory=dict)  # those that are labels; none is
    max_events: int = Field(20, ge=1)  # of one user on one completion
    max_text: int = Field(32_768, ge=1)  # characters of an edit
    max_comment: int = Field(4_096, ge=1)  # characters
    # Quarantine. A newcomer is who has not come back yet: whose judgements do not span so many days. In a store that
    # has listened for twice as long, newcomers wait, and what they said counts from when they come back: names are
    # free, so that only time tells a crowd from one who invents it. 0: newcomers count at once
    newcomer_days: float = Field(7.0, ge=0)
    newcomer_edits: int = Field(10, ge=0)  # of one newcomer in a day, also where newcomers count
    burst_events: int = Field(30, ge=1)  # judgements of one user in burst_s
    burst_s: float = Field(60.0, gt=0)
    flood_events: int = Field(300, ge=1)  # judgements of one user in a day
    flips: int = Field(20, ge=1)  # thumbs that one user turns in a day
    same_text: int = Field(5, ge=2)  # users who give one edited text, among the newest 500 edits
