"""The loop: when a round begins, which candidates it trains, and how long its stages may take."""

from __future__ import annotations

import re

from pydantic import Field, field_validator

from kto_ray.config.base import Hours, Section
from kto_ray.config.learning import CandidateSection


class LoopSection(Section):
    enabled: bool = True
    min_labels: int = Field(200, ge=8)  # new labels that start a round
    every_min: float | None = Field(None, gt=0)  # or this many minutes, when there is at least one new label
    tick_s: float = Field(1.0, gt=0)
    max_attempts: int = Field(3, ge=1)  # of one stage of a round
    # Hours that a stage of a round may take, all its attempts and waiting together; then the round ends, and says why
    snapshot_hours: Hours = Field(6.0, gt=0)
    train_hours: Hours = Field(72.0, gt=0)
    gate_hours: Hours = Field(6.0, gt=0)
    # Once there have been so many, those included that a person began, no round starts by itself. None: for ever
    max_rounds: int | None = Field(None, ge=1)
    # Each round trains and judges these, one after the other on one snapshot, and the best that passes the gate meets
    # users: what is set over the `kto` section, by name. Empty: one candidate, by that section
    candidates: dict[str, CandidateSection] = Field({})
    # A candidate that has passed the gate waits for a person (`kto-ray rollout approve`) before any user meets it
    require_approval: bool = False
    approval_hours: Hours = Field(168.0, gt=0)  # then the round ends

    @field_validator("candidates")
    @classmethod
    def _names(cls, candidates: dict[str, CandidateSection]) -> dict[str, CandidateSection]:
        for name in candidates:
            if not re.fullmatch("[a-z0-9][a-z0-9-]{0,31}", name):
                raise ValueError(
                    f"a candidate's name must be up to 32 of a-z, 0-9 and -, which name its training, got {name!r}"
                )
        return candidates
