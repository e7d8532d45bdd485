"""The data model, in one place.

    completions ──< feedback            what was said, and what users said of it (append-only)
    completions ──< labels              the verdict of each user on it, made from its feedback
    tallies                             how much there is of these; the rows add up
    snapshots ──< adapters ──< gates    what was learnt from it, and how it was judged
    rounds ──< trainings                one turn of the loop, and what was trained in it (or by hand)
    rollouts ──< rollout_points         a challenger's A/B test, and its interval at each look
    aliases                             champion, challenger, previous -> adapter; the only thing that a swap changes
    replicas                            what each live policy replica holds
    requests                            what an operator asked the controller to do
    leases                              who may act: one controller at a time
    keys                                who may ask at all
    archives                            files that hold the texts of old completions
    sequence                            the order of completions and feedback
    compatibility                       the oldest schema whose programs may use this one

Times are seconds since the epoch (UTC), for people: what came first is told by `seq`. Rows are inserted and then
changed only in their state columns; completions and feedback texts never change.
"""

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
    MetaData,
    Sequence,
    String,
    Table,
    Text,
    false,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

USER = String(320).with_variant(String(255), "sqlite")  # principal/user; SQLite reads no lengths
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
    Index("ix_completions_seq", "seq", unique=True),
    Index("ix_completions_external", "external_system", "external_conversation", "external_message"),
    Index("ix_completions_rollout", "rollout"),
    Index("ix_completions_user", "user"),
    Index("ix_completions_created_at", "created_at"),
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
    Column("rollout", String(64)),  # these four are the completion's
    Column("arm", String(16), nullable=False),
    Column("asker", USER),
    Column("asked_seq", BigInteger, nullable=False),
    Column("since", Integer, nullable=False),  # the newest round when it came to be what it is; 0: before the first
    Index("ix_labels_votes", "rollout", "asker", "seq"),
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

snapshots = Table(
    "snapshots",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("created_at", Double, nullable=False),
    Column("uri", Text, nullable=False),
    Column("manifest", JSON, nullable=False),
)

adapters = Table(
    "adapters",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("number", Integer, nullable=False, unique=True),
    Column("created_at", Double, nullable=False),
    Column("uri", Text, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("snapshot", String(64)),
    Column("parent", String(255)),
    Column("reference", String(255), nullable=False),
    Column("rank", Integer, nullable=False),
    Column("manifest", JSON, nullable=False),
)

gates = Table(
    "gates",
    metadata,
    Column("adapter", String(255), ForeignKey("adapters.name"), primary_key=True),
    Column("created_at", Double, nullable=False),
    Column("snapshot", String(64), nullable=False),
    Column("decision", String(32), nullable=False),
    Column("reasons", JSON, nullable=False),
    Column("metrics", JSON, nullable=False),
    Column("answers", JSON, nullable=False),
)

aliases = Table(
    "aliases",
    metadata,
    Column("alias", String(32), primary_key=True),
    Column("adapter", String(255), nullable=False),
    Column("changed_at", Double, nullable=False),
)

rounds = Table(
    "rounds",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("stage", String(16), nullable=False),
    Column("started_at", Double, nullable=False),
    Column("stage_started_at", Double, nullable=False),
    Column("ended_at", Double),
    Column("snapshot", String(64)),
    Column("adapter", String(255)),
    Column("rollout", String(64)),
    Column("outcome", String(32)),
    Column("reason", Text),
    Column("came_before", BigInteger, nullable=False, server_default="0"),  # the total `came` when it began
    Column("attempts", Integer, nullable=False),
    Column("stage_s", JSON, nullable=False),
    Index("ix_rounds_adapter", "adapter"),
)

trainings = Table(
    "trainings",
    metadata,
    Column("run", String(255), primary_key=True),
    Column("round", Integer, unique=True),  # null: by hand
    Column("snapshot", String(64), nullable=False),
    Column("adapter", String(255)),
    Column("started_at", Double, nullable=False),
    Column("ended_at", Double),
    Column("figures", JSON, nullable=False),
    Column("history", JSON, nullable=False),
)

rollouts = Table(
    "rollouts",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("champion", String(255), nullable=False),
    Column("challenger", String(255), nullable=False),
    Column("salt", String(64), nullable=False),
    Column("stage", Integer, nullable=False),
    Column("weight", Double, nullable=False),
    Column("status", String(16), nullable=False),
    Column("started_at", Double, nullable=False),
    Column("stage_started_at", Double, nullable=False),
    Column("stage_started_seq", BigInteger, nullable=False, server_default="0"),
    Column("ended_at", Double),
    Column("reason", Text),
)

rollout_points = Table(
    "rollout_points",
    metadata,
    Column("rollout", String(64), ForeignKey("rollouts.id"), primary_key=True),
    Column("at", Double, primary_key=True),
    Column("stage", Integer, nullable=False),
    Column("n_champion", Integer, nullable=False),
    Column("up_champion", Integer, nullable=False),
    Column("n_challenger", Integer, nullable=False),
    Column("up_challenger", Integer, nullable=False),
    Column("low", Double, nullable=False),
    Column("high", Double, nullable=False),
)

replicas = Table(
    "replicas",
    metadata,
    Column("replica", String(255), primary_key=True),
    Column("node", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("held", JSON, nullable=False),
    Column("errors", JSON, nullable=False),
    Column("heartbeat_at", Double, nullable=False),
    Column("dtype", String(16), nullable=False, server_default="auto"),
    Column("dtype_why", Text, nullable=False, server_default=""),
)

requests = Table(
    "requests",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("created_at", Double, nullable=False),
    Column("action", String(32), nullable=False),
    Column("handled_at", Double),
    Column("refused", Boolean, nullable=False, server_default=false()),
    Column("result", Text),
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

compatibility = Table("compatibility", metadata, Column("oldest", String(8), nullable=False))

leases = Table(
    "leases",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("holder", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("expires_at", Double, nullable=False),
)
