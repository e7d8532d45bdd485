"""The tables of what was said and what users said of it, of who may ask, and of where old texts are."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    Sequence,
    String,
    Table,
    Text,
    false,
    text,
)

from kto_ray.store.schema.base import USER, metadata

ORDER = Sequence("store_order", metadata=metadata)  # PostgreSQL's; SQLite has none, and counts in a row
sequence = Table("sequence", metadata, Column("value", BigInteger, nullable=False))

completions = Table(
    "completions",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("seq", BigInteger, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("model", String(255), nullable=False),
    Column("adapter", String(255), nullable=False),
    Column("arm", String(16), nullable=False),
    Column("rollout", String(64)),
    Column("status", String(16), nullable=False),
    Column("user", USER),
    Column("task", String(255)),
    Column("external_system", String(64)),
    Column("external_conversation", String(255)),
    Column("external_message", String(255)),
    Column("messages", JSON, nullable=False),
    Column("params", JSON, nullable=False),
    Column("text", Text, nullable=False),
    Column("finish_reason", String(32)),
    Column("prompt_tokens", Integer, nullable=False),
    Column("completion_tokens", Integer, nullable=False),
    Column("latency_s", Double, nullable=False),
    Column("first_token_s", Double),
    Column("principal", String(255)),
    Column("forced", Boolean, nullable=False, server_default=false()),
    Column("prompt_ids", LargeBinary),
    Column("answer_ids", LargeBinary),
    Column("stop_reason", Text),
    Column("reasoning", Text),
    Column("tool_calls", JSON(none_as_null=True)),
    Column("base", String(64)),
    Column("archive", String(64)),
    Column("holdback", String(64)),
    Column("solicited", Boolean, nullable=False, server_default=false()),
    Index("ix_completions_seq", "seq", unique=True),
    Index("ix_completions_external", "external_system", "external_conversation", "external_message"),
    Index("ix_completions_rollout", "rollout", "seq"),
    Index("ix_completions_user", "user"),
    Index("ix_completions_created_at", "created_at"),
)

Index(
    "ix_completions_holdback",
    completions.c.holdback,
    completions.c.seq,
    sqlite_where=completions.c.holdback.is_not(None),
    postgresql_where=completions.c.holdback.is_not(None),
)
SERVED = completions.c.arm != text("'import'")  # the service's own; as a query has it, or the index would not be used
Index("ix_completions_served", completions.c.created_at, sqlite_where=SERVED, postgresql_where=SERVED)
Index(
    "ix_completions_solicited",
    completions.c.rollout,
    completions.c.user,
    sqlite_where=text("solicited = 1"),  # as a query has it there, or it would not be used
    postgresql_where=completions.c.solicited,
)

feedback = Table(
    "feedback",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("seq", BigInteger, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("completion_id", String(64), ForeignKey("completions.id")),  # null while its completion is not known
    Column("named_completion", String(255)),  # the completion id that the client gave, known or not
    Column("external_system", String(64)),
    Column("external_conversation", String(255)),
    Column("external_message", String(255)),
    Column("user", USER),
    Column("value", Boolean),
    Column("text", Text),
    Column("reason_codes", JSON, nullable=False),
    Column("comment", Text),
    Column("tags", JSON, nullable=False),
    Column("idempotency_key", String(255)),
    Column("key_owner", String(511), nullable=False, server_default=""),
    Column("body_hash", String(64)),
    Column("withdrawn_at", Double),
    Column("principal", String(255)),
    Column("reviewer", Boolean, nullable=False, server_default=false()),
    Column("signal", String(16)),
    Column("parent", String(64)),
    Column("held", String(16)),
    Column("held_why", Text),
    Index("ix_feedback_seq", "seq", unique=True),
    Index("ix_feedback_key", "idempotency_key", "key_owner", unique=True),
    Index("ix_feedback_completion_id", "completion_id", "seq"),
    Index("ix_feedback_named_completion", "named_completion"),
    Index("ix_feedback_external", "external_system", "external_conversation", "external_message"),
    Index("ix_feedback_created_at", "created_at"),
    Index("ix_feedback_user", "user", "created_at"),
)
PENDING = feedback.c.completion_id.is_(None) & feedback.c.held.is_(None)  # an orphan is dropped, and waits no longer
WAITING = feedback.c.held == text("'held'")
EDIT = feedback.c.kind == text("'edit'")
Index(
    "ix_feedback_pending",
    feedback.c.id,
    sqlite_where=PENDING,
    postgresql_where=PENDING,
)
Index(
    "ix_feedback_parent",
    feedback.c.parent,
    sqlite_where=feedback.c.parent.is_not(None),
    postgresql_where=feedback.c.parent.is_not(None),
)
Index("ix_feedback_waiting", feedback.c.user, sqlite_where=WAITING, postgresql_where=WAITING)
Index("ix_feedback_edits", feedback.c.seq, sqlite_where=EDIT, postgresql_where=EDIT)
Index(
    "ix_feedback_held",
    feedback.c.held,
    feedback.c.seq,
    sqlite_where=feedback.c.held.is_not(None),
    postgresql_where=feedback.c.held.is_not(None),
)

labels = Table(
    "labels",
    metadata,
    Column("completion_id", String(64), ForeignKey("completions.id"), primary_key=True),
    Column("user", USER, primary_key=True),  # who judged
    Column("verdict", String(16), nullable=False),
    Column("at", Double, nullable=False),
    Column("seq", BigInteger, nullable=False),  # of the event that decided it
    Column("reviewer", Boolean, nullable=False, server_default=false()),
    Column("rollout", String(64)),  # these five are the completion's
    Column("holdback", String(64)),
    Column("arm", String(16), nullable=False),
    Column("asker", USER),
    Column("asked_seq", BigInteger, nullable=False),
    Column("since", Integer, nullable=False),  # the newest round when it came to be what it is; 0: before the first
    Index("ix_labels_votes", "rollout", "asker", "seq"),
)
Index(
    "ix_labels_holdback",
    labels.c.holdback,
    labels.c.asker,
    sqlite_where=labels.c.holdback.is_not(None),
    postgresql_where=labels.c.holdback.is_not(None),
)

TALLY_SLOTS = 64
tallies = Table(
    "tallies",
    metadata,
    Column("slot", Integer, primary_key=True, autoincrement=False),
    *(
        Column(name, BigInteger, nullable=False, server_default="0")
        for name in (
            "completions",
            "stored",
            "pending",
            "withdrawn",
            "up",
            "down",
            "edits",
            "came",
            "held",
            "strangers",
            "orphans",
        )
    ),
)

keys = Table(
    "keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(64), nullable=False),  # the principal
    Column("scopes", JSON, nullable=False),
    Column("vouches", Boolean, nullable=False),
    Column("hash", String(64), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("revoked_at", Double),
)

archives = Table(
    "archives",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("created_at", Double, nullable=False),
    Column("uri", Text, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("completions", Integer, nullable=False),
    Column("oldest_at", Double, nullable=False),
    Column("newest_at", Double, nullable=False),
)
