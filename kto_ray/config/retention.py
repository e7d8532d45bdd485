"""What is kept, for how long; and what becomes of adapters that learnt from what was erased."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kto_ray.config.base import Section

Days = Annotated[float, Field(gt=0)]


class RetentionSection(Section):
    """None keeps for ever. What an alias, a test or a round in progress needs is kept whatever stands here, and so are
    manifests and rows of lineage."""

    completions_days: Days | None = None  # then the texts of completions that nobody judged move to home/archives
    judged_days: Days | None = None  # and of judged ones, which no longer train from then on
    snapshots: int | None = Field(None, ge=1)  # the newest, whose rows are kept
    adapters: int | None = Field(None, ge=1)  # the newest, whose weights are kept
    training_days: Days | None = None  # then checkpoints and curves of a run that has ended go
    requests_days: Days | None = None  # then what operators asked goes
    # list: erasing a user names the adapters that learnt from them, which go on serving until a round brings a better
    # one; retire: aliases leave these, for the previous champion or the base; retrain: a round begins at once
    after_erasure: Literal["list", "retire", "retrain"] = "list"

    @property
    def keeps_all(self) -> bool:
        return all(value is None for name, value in self if name != "after_erasure")
