"""The frozen records that cross rooms. Times are seconds since the epoch (UTC); names end in their unit elsewhere."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# A chat message and a JSON object keep the caller's shape (OpenAI's schema is open), hence Mapping.
Message = Mapping[str, Any]
Json = Mapping[str, Any]

BASE = "base"  # alias of the model without an adapter; served as `policy@base`
CHAMPION = "champion"
CHALLENGER = "challenger"
PREVIOUS = "previous"  # the champion before the last promotion, kept loaded for rollback


class Arm(enum.StrEnum):
    """Which side of the A/B test answered. PINNED requests named a version and never count in a test."""

    CHAMPION = "champion"
    CHALLENGER = "challenger"
    PINNED = "pinned"
    IMPORT = "import"


@dataclass(frozen=True, slots=True)
class ExternalRef:
    """How another system (Open WebUI, LibreChat) names a completion."""

    system: str
    conversation: str
    message: str


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer of the policy, as the client got it.

    `model` is what the client asked for, `adapter` the immutable version that answered (`policy@v7-3fa9c1`, or
    `policy@base`). `status` is "complete", "aborted" (the client left) or "failed".
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


class FeedbackKind(enum.StrEnum):
    THUMB = "thumb"
    EDIT = "edit"
    COMMENT = "comment"


@dataclass(frozen=True, slots=True)
class Feedback:
    """One event of the append-only feedback log. `value` belongs to a thumb, `text` to an edit."""

    id: str
    created_at: float
    kind: FeedbackKind
    completion_id: str | None
    user: str | None = None
    value: bool | None = None
    text: str | None = None
    external: ExternalRef | None = None
    reason_codes: tuple[str, ...] = ()
    comment: str | None = None
    tags: Json = field(default_factory=dict)
    idempotency_key: str | None = None
    body_hash: str | None = None
    withdrawn_at: float | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """A labelled (prompt, answer) pair: the unit that KTO learns from."""

    id: str
    completion_id: str
    user: str
    messages: tuple[Message, ...]
    answer: str
    desirable: bool
    source: str  # thumb | edit | import
    adapter: str
    created_at: float
    ended: bool = True  # False: cut off by the token limit, so its end is not the policy's and must not be learnt


@dataclass(frozen=True, slots=True)
class SnapshotManifest:
    """What a snapshot holds. `id` is the SHA-256 (first 16 hex digits) of everything here but itself and created_at."""

    id: str
    created_at: float
    n_desirable: int
    n_undesirable: int
    n_holdout_desirable: int
    n_holdout_undesirable: int
    sources: Mapping[str, Mapping[str, int]]  # training rows by source and class (desirable, undesirable)
    dropped: Mapping[str, int]  # rows left out, by filter
    ratio: float  # n_desirable / n_undesirable in training
    ratio_low: float  # 95% interval of the ratio (Wilson, on the desirable share)
    ratio_high: float
    desirable_weight: float
    undesirable_weight: float
    micro_batch: int
    seed: int
    model: str
    tokenizer_hash: str
    template_hash: str
    max_length: int
    shards: tuple[Shard, ...]
    newest_feedback_at: float
    filters: Json = field(default_factory=dict)  # the settings that decided which rows entered


@dataclass(frozen=True, slots=True)
class Shard:
    """A Parquet file of a snapshot. `split` is "train" or "holdout"."""

    name: str
    split: str
    rows: int
    sha256: str


@dataclass(frozen=True, slots=True)
class AdapterVersion:
    """An immutable LoRA adapter. `name` is what the engine serves; `sha256` is that of adapter_model.safetensors."""

    name: str
    number: int
    created_at: float
    uri: str
    sha256: str
    snapshot: str | None
    parent: str | None
    reference: str
    rank: int
    manifest: Json = field(default_factory=dict)


class GateDecision(enum.StrEnum):
    PROMOTE_TO_CANARY = "promote-to-canary"
    REJECT = "reject"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True)
class GateReport:
    """The gate's verdict on one adapter: `metrics` are the figures, `reasons` say the verdict in words."""

    adapter: str
    snapshot: str
    created_at: float
    decision: GateDecision
    reasons: tuple[str, ...]
    metrics: Mapping[str, float]
    answers: tuple[Mapping[str, str], ...] = ()  # guard prompts: prompt, champion, candidate


class Stage(enum.StrEnum):
    """Where a round stands. A round walks down this list and ends in DONE with an outcome."""

    SNAPSHOT = "snapshot"
    TRAIN = "train"
    LOAD = "load"
    GATE = "gate"
    ROLLOUT = "rollout"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Round:
    """One turn of the loop. `stage_s` holds the seconds that each ended stage took."""

    id: int
    stage: Stage
    started_at: float
    stage_started_at: float
    snapshot: str | None = None
    adapter: str | None = None
    rollout: str | None = None
    outcome: str | None = None  # promoted | rejected | inconclusive | aborted | failed
    reason: str | None = None
    attempts: int = 0  # of the present stage
    ended_at: float | None = None
    stage_s: Mapping[str, float] = field(default_factory=dict)
    train_metrics: Json = field(default_factory=dict)


class RolloutStatus(enum.StrEnum):
    RUNNING = "running"
    PAUSED = "paused"
    PROMOTED = "promoted"
    ABORTED = "aborted"


@dataclass(frozen=True, slots=True)
class RolloutState:
    """A challenger's way to champion. `stage` indexes the configured stages; `weight` is the challenger's share."""

    id: str
    champion: str
    challenger: str
    salt: str
    stage: int
    weight: float
    status: RolloutStatus
    started_at: float
    stage_started_at: float
    ended_at: float | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class ArmCount:
    """Thumbs of one arm: users who judged, and how many of their first judgements were up."""

    users: int
    up: int


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """What a live policy replica says of itself: the adapters it has loaded and probed, and what it computes in."""

    replica: str
    node: str
    pid: int
    held: tuple[str, ...]
    heartbeat_at: float
    errors: Mapping[str, str] = field(default_factory=dict)  # adapter name -> why it could not be loaded
    dtype: str = "auto"  # the precision that it decided on, which training and gate then take too
    dtype_why: str = ""
