"""Hand-made completions, what users say of them, and the manifest of a snapshot of that."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from kto_ray.config import Config
from kto_ray.records.completions import Arm, Completion
from kto_ray.records.erasure import Subject
from kto_ray.records.feedback import Feedback, FeedbackKind
from kto_ray.records.snapshots import SnapshotManifest
from kto_ray.store import users

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


def manifest(name: str = "0123456789abcdef", **changes: Any) -> SnapshotManifest:
    """Of 16 training rows of each class and 4 held out, in micro-batches of 4, without shards."""
    made = SnapshotManifest(
        id=name,
        created_at=1.0,
        n_desirable=16,
        n_undesirable=16,
        n_holdout_desirable=4,
        n_holdout_undesirable=4,
        sources={"thumb": {"desirable": 16, "undesirable": 16}},
        dropped={},
        ratio=1.0,
        ratio_low=0.5,
        ratio_high=2.0,
        desirable_weight=1.0,
        undesirable_weight=1.0,
        micro_batch=4,
        seed=7,
        model=Config().model.id,
        tokenizer_hash="t",
        template_hash="c",
        max_length=128,
        shards=(),
        newest_feedback_at=1.0,
    )
    return replace(made, **changes)


def erase(tx: sa.Connection, user: str) -> None:
    """All that the store holds of a user, in one transaction."""
    while users.erase_some(tx, Subject("user", user)) != users.NOTHING:
        continue
