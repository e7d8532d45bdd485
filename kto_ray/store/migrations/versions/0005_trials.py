"""A/B tests by settled trials: one a user, among all who got an answer; levels of a budget, the rules of each test.
Requests that say what they mean, and expire. Holdbacks."""

import time

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

FAULTS = ("failed", "aborted", "cut_off", "slow")
# Of a test that goes on, which is judged from now on as a life's first: the default omega * alpha, 0.05 * 0.1. Without
# it, it could promote falsely at no cost to the budget.
FIRST_LEVEL = 0.005


def upgrade() -> None:
    op.add_column("rollouts", sa.Column("started_seq", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("rollouts", sa.Column("level", sa.Double(), nullable=False, server_default="0"))
    op.execute(f"UPDATE rollouts SET level = {FIRST_LEVEL} WHERE status IN ('running', 'paused')")
    op.add_column("rollouts", sa.Column("by_evidence", sa.Boolean(), nullable=False, server_default=sa.true()))
    op.add_column("rollouts", sa.Column("rules", sa.JSON(none_as_null=True)))
    op.add_column("rollouts", sa.Column("kind", sa.String(16), nullable=False, server_default="test"))
    op.add_column("rollouts", sa.Column("watch", sa.JSON(none_as_null=True)))
    op.add_column("rollouts", sa.Column("status_at", sa.Double()))
    op.add_column("rollouts", sa.Column("asked", sa.JSON(), nullable=False, server_default="[]"))
    held_back = sa.text("holdback IS NOT NULL")
    for table, columns in (("completions", ["holdback", "seq"]), ("labels", ["holdback", "asker"])):
        op.add_column(table, sa.Column("holdback", sa.String(64)))
        name = f"ix_{table}_holdback"
        op.create_index(name, table, columns, sqlite_where=held_back, postgresql_where=held_back)
    op.execute("UPDATE rollouts SET started_seq = stage_started_seq")
    op.execute("UPDATE rollouts SET by_evidence = false WHERE reason LIKE '%by an operator'")
    # Nobody knows since when: a pause is as long as it may be from now on.
    paused = sa.text("UPDATE rollouts SET status_at = :now WHERE status = 'paused'")
    op.execute(paused.bindparams(now=time.time()))
    with op.batch_alter_table("rollout_points") as batch:
        for name in ("up_champion", "up_challenger"):
            batch.alter_column(name, existing_type=sa.Integer(), type_=sa.Double(), existing_nullable=False)
        for name in ("exposed_champion", "exposed_challenger"):
            batch.add_column(sa.Column(name, sa.Integer(), nullable=False, server_default="0"))
        batch.add_column(sa.Column("evidence", sa.JSON(), nullable=False, server_default="{}"))
    op.add_column("requests", sa.Column("target", sa.String(255)))
    op.add_column("requests", sa.Column("expires_at", sa.Double()))
    _tables()
    op.drop_index("ix_completions_rollout", "completions")
    op.create_index("ix_completions_rollout", "completions", ["rollout", "seq"])
    # Who has judged in a test that goes on: what is looked at for a trial.
    op.execute(
        "INSERT INTO arrivals (rollout, completion_id) SELECT completions.rollout, completions.id FROM completions "
        "JOIN rollouts ON rollouts.id = completions.rollout WHERE rollouts.status IN ('running', 'paused') "
        "AND completions.seq > rollouts.stage_started_seq"
    )
    op.execute(
        'INSERT INTO voters (rollout, "user", seq) SELECT labels.rollout, labels.asker, max(labels.seq) FROM labels '
        "JOIN rollouts ON rollouts.id = labels.rollout WHERE rollouts.status IN ('running', 'paused') "
        "AND labels.asker IS NOT NULL AND NOT labels.reviewer GROUP BY labels.rollout, labels.asker"
    )
    op.execute("UPDATE compatibility SET oldest = '0005'")


def downgrade() -> None:
    op.drop_index("ix_completions_rollout", "completions")
    op.create_index("ix_completions_rollout", "completions", ["rollout"])
    for table in ("voters", "arrivals", "exposures", "trials"):
        op.drop_table(table)
    with op.batch_alter_table("rollout_points") as batch:
        for name in ("exposed_champion", "exposed_challenger", "evidence"):
            batch.drop_column(name)
        for name in ("up_champion", "up_challenger"):
            batch.alter_column(name, existing_type=sa.Double(), type_=sa.Integer(), existing_nullable=False)
    for name in ("target", "expires_at"):
        op.drop_column("requests", name)
    for table in ("completions", "labels"):
        op.drop_index(f"ix_{table}_holdback", table)
        op.drop_column(table, "holdback")
    for name in ("started_seq", "level", "by_evidence", "rules", "kind", "watch", "status_at", "asked"):
        op.drop_column("rollouts", name)
    op.execute("UPDATE compatibility SET oldest = '0004'")


def _tables() -> None:
    user = sa.String(320).with_variant(sa.String(255), "sqlite")
    op.create_table(
        "trials",
        sa.Column("rollout", sa.String(64), nullable=False),
        sa.Column("stage", sa.Integer(), nullable=False),
        sa.Column("user", user, nullable=False),
        sa.Column("challenger", sa.Boolean(), nullable=False),
        sa.Column("known", sa.Boolean(), nullable=False),
        sa.Column("first_at", sa.Double(), nullable=False),
        sa.Column("first_seq", sa.BigInteger(), nullable=False),
        sa.Column("faults", sa.JSON(), nullable=False, server_default="[]"),
        sa.Column("place", sa.Integer()),
        sa.Column("settled_at", sa.Double()),
        sa.Column("outcome", sa.Double()),
        sa.ForeignKeyConstraint(["rollout"], ["rollouts.id"], name="fk_trials_rollout"),
        sa.PrimaryKeyConstraint("rollout", "stage", "user", name="pk_trials"),
    )
    op.create_index("ix_trials_user", "trials", ["user"])
    settled = sa.text("place IS NOT NULL")
    columns = ["rollout", "stage", "place"]
    op.create_index("ix_trials_place", "trials", columns, unique=True, sqlite_where=settled, postgresql_where=settled)
    op.create_table(
        "exposures",
        sa.Column("rollout", sa.String(64), nullable=False),
        sa.Column("stage", sa.Integer(), nullable=False),
        sa.Column("challenger", sa.Boolean(), nullable=False),
        *(sa.Column(name, sa.Integer(), nullable=False, server_default="0") for name in ("users", "known", *FAULTS)),
        sa.ForeignKeyConstraint(["rollout"], ["rollouts.id"], name="fk_exposures_rollout"),
        sa.PrimaryKeyConstraint("rollout", "stage", "challenger", name="pk_exposures"),
    )
    op.create_table(
        "arrivals",
        sa.Column("rollout", sa.String(64), nullable=False),
        sa.Column("completion_id", sa.String(64), nullable=False),
        sa.ForeignKeyConstraint(
            ["completion_id"], ["completions.id"], name="fk_arrivals_completion_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("rollout", "completion_id", name="pk_arrivals"),
    )
    op.create_table(
        "voters",
        sa.Column("rollout", sa.String(64), nullable=False),
        sa.Column("user", user, nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("due_at", sa.Double()),
        sa.PrimaryKeyConstraint("rollout", "user", "seq", name="pk_voters"),
    )
    op.create_index("ix_voters_due_at", "voters", ["rollout", "due_at"])
