"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    _completions()
    _feedback()
    _learnt()
    _loop()
    _rollouts()
    _serving()


def downgrade() -> None:
    for table in ("feedback", "completions", "gates", "adapters", "snapshots", "rounds", "requests", "leases"):
        op.drop_table(table)
    for table in ("rollout_points", "rollouts", "aliases", "replicas"):
        op.drop_table(table)


def _text(name: str, length: int, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.String(length), nullable=nullable)


def _time(name: str, nullable: bool = False) -> sa.Column[float]:
    return sa.Column(name, sa.Double(), nullable=nullable)


def _external() -> list[sa.Column[str]]:
    parts = (("system", 64), ("conversation", 255), ("message", 255))
    return [_text(f"external_{part}", length, nullable=True) for part, length in parts]


def _completions() -> None:
    op.create_table(
        "completions",
        _text("id", 64),
        _time("created_at"),
        _text("model", 255),
        _text("adapter", 255),
        _text("arm", 16),
        _text("rollout", 64, nullable=True),
        _text("status", 16),
        _text("user", 255, nullable=True),
        _text("task", 255, nullable=True),
        *_external(),
        sa.Column("messages", sa.JSON(), nullable=False),
        sa.Column("params", sa.JSON(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        _text("finish_reason", 32, nullable=True),
        sa.Column("prompt_tokens", sa.Integer(), nullable=False),
        sa.Column("completion_tokens", sa.Integer(), nullable=False),
        _time("latency_s"),
        _time("first_token_s", nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_completions"),
    )
    external = ["external_system", "external_conversation", "external_message"]
    op.create_index("ix_completions_external", "completions", external)
    op.create_index("ix_completions_rollout", "completions", ["rollout"])
    op.create_index("ix_completions_user", "completions", ["user"])
    op.create_index("ix_completions_created_at", "completions", ["created_at"])


def _feedback() -> None:
    op.create_table(
        "feedback",
        _text("id", 64),
        _time("created_at"),
        _text("kind", 16),
        _text("completion_id", 64, nullable=True),
        _text("named_completion", 255, nullable=True),
        *_external(),
        _text("user", 255, nullable=True),
        sa.Column("value", sa.Boolean()),
        sa.Column("text", sa.Text()),
        sa.Column("reason_codes", sa.JSON(), nullable=False),
        sa.Column("comment", sa.Text()),
        sa.Column("tags", sa.JSON(), nullable=False),
        _text("idempotency_key", 255, nullable=True),
        _text("body_hash", 64, nullable=True),
        _time("withdrawn_at", nullable=True),
        sa.ForeignKeyConstraint(["completion_id"], ["completions.id"], name="fk_feedback_completion_id"),
        sa.PrimaryKeyConstraint("id", name="pk_feedback"),
        sa.UniqueConstraint("idempotency_key", name="uq_feedback_idempotency_key"),
    )
    external = ["external_system", "external_conversation", "external_message"]
    op.create_index("ix_feedback_completion_id", "feedback", ["completion_id"])
    op.create_index("ix_feedback_named_completion", "feedback", ["named_completion"])
    op.create_index("ix_feedback_external", "feedback", external)
    op.create_index("ix_feedback_created_at", "feedback", ["created_at"])


def _learnt() -> None:
    op.create_table(
        "snapshots",
        _text("id", 64),
        _time("created_at"),
        sa.Column("uri", sa.Text(), nullable=False),
        sa.Column("manifest", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_snapshots"),
    )
    op.create_table(
        "adapters",
        _text("name", 255),
        sa.Column("number", sa.Integer(), nullable=False),
        _time("created_at"),
        sa.Column("uri", sa.Text(), nullable=False),
        _text("sha256", 64),
        _text("snapshot", 64, nullable=True),
        _text("parent", 255, nullable=True),
        _text("reference", 255),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("manifest", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_adapters"),
        sa.UniqueConstraint("number", name="uq_adapters_number"),
    )
    op.create_table(
        "gates",
        _text("adapter", 255),
        _time("created_at"),
        _text("snapshot", 64),
        _text("decision", 32),
        sa.Column("reasons", sa.JSON(), nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("answers", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["adapter"], ["adapters.name"], name="fk_gates_adapter"),
        sa.PrimaryKeyConstraint("adapter", name="pk_gates"),
    )


def _loop() -> None:
    op.create_table(
        "rounds",
        sa.Column("id", sa.Integer(), nullable=False),
        _text("stage", 16),
        _time("started_at"),
        _time("stage_started_at"),
        _time("ended_at", nullable=True),
        _text("snapshot", 64, nullable=True),
        _text("adapter", 255, nullable=True),
        _text("rollout", 64, nullable=True),
        _text("outcome", 32, nullable=True),
        sa.Column("reason", sa.Text()),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("stage_s", sa.JSON(), nullable=False),
        sa.Column("train_metrics", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_rounds"),
    )
    op.create_table(
        "requests",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        _time("created_at"),
        _text("action", 32),
        _time("handled_at", nullable=True),
        sa.Column("result", sa.Text()),
        sa.PrimaryKeyConstraint("id", name="pk_requests"),
    )
    op.create_table(
        "leases",
        _text("name", 64),
        _text("holder", 255),
        sa.Column("pid", sa.Integer(), nullable=False),
        _time("expires_at"),
        sa.PrimaryKeyConstraint("name", name="pk_leases"),
    )


def _rollouts() -> None:
    op.create_table(
        "rollouts",
        _text("id", 64),
        _text("champion", 255),
        _text("challenger", 255),
        _text("salt", 64),
        sa.Column("stage", sa.Integer(), nullable=False),
        sa.Column("weight", sa.Double(), nullable=False),
        _text("status", 16),
        _time("started_at"),
        _time("stage_started_at"),
        _time("ended_at", nullable=True),
        sa.Column("reason", sa.Text()),
        sa.PrimaryKeyConstraint("id", name="pk_rollouts"),
    )
    op.create_table(
        "rollout_points",
        _text("rollout", 64),
        _time("at"),
        sa.Column("stage", sa.Integer(), nullable=False),
        sa.Column("n_champion", sa.Integer(), nullable=False),
        sa.Column("up_champion", sa.Integer(), nullable=False),
        sa.Column("n_challenger", sa.Integer(), nullable=False),
        sa.Column("up_challenger", sa.Integer(), nullable=False),
        sa.Column("low", sa.Double(), nullable=False),
        sa.Column("high", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["rollout"], ["rollouts.id"], name="fk_rollout_points_rollout"),
        sa.PrimaryKeyConstraint("rollout", "at", name="pk_rollout_points"),
    )


def _serving() -> None:
    op.create_table(
        "aliases",
        _text("alias", 32),
        _text("adapter", 255),
        _time("changed_at"),
        sa.PrimaryKeyConstraint("alias", name="pk_aliases"),
    )
    op.create_table(
        "replicas",
        _text("replica", 255),
        _text("node", 255),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("held", sa.JSON(), nullable=False),
        sa.Column("errors", sa.JSON(), nullable=False),
        _time("heartbeat_at"),
        sa.PrimaryKeyConstraint("replica", name="pk_replicas"),
    )
