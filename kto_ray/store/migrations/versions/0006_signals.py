"""Guards of an A/B test by what users do and by more of what answers are; ratings that answers ask for."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

COUNTS = (
    *("tool_error", "asked_back", "long", "observed", "regenerated", "disagreed", "edited"),
    *("solicited", "rated", "rated_up"),
)
BEFORE = ("failed", "aborted", "cut_off", "slow")


def upgrade() -> None:
    op.add_column("completions", sa.Column("solicited", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("trials", sa.Column("react_by", sa.Double()))
    op.add_column("trials", sa.Column("reactions", sa.JSON(none_as_null=True)))
    unread = "react_by IS NOT NULL AND reactions IS NULL"
    for table, name, columns, lite, plain in (
        ("completions", "solicited", ["rollout", "user"], "solicited = 1", "solicited"),
        ("trials", "react_by", ["rollout", "stage", "react_by"], unread, unread),
    ):
        there, here = sa.text(lite), sa.text(plain)
        op.create_index(f"ix_{table}_{name}", table, columns, sqlite_where=there, postgresql_where=here)
    for name in COUNTS:
        op.add_column("exposures", sa.Column(name, sa.Integer(), nullable=False, server_default="0"))
    op.add_column("arrivals", sa.Column("faults", sa.JSON(), nullable=False, server_default="[]"))
    _keep_guards()


def downgrade() -> None:
    op.drop_column("arrivals", "faults")
    for name in COUNTS:
        op.drop_column("exposures", name)
    op.drop_index("ix_trials_react_by", "trials")
    op.drop_column("trials", "reactions")
    op.drop_column("trials", "react_by")
    op.drop_index("ix_completions_solicited", "completions")
    op.drop_column("completions", "solicited")


def _keep_guards() -> None:
    """A test goes on under the rules that it began with, which know of nothing else: of those who are in it already,
    nobody will ever know what they did."""
    table = sa.table("rollouts", sa.column("id", sa.String), sa.column("rules", sa.JSON(none_as_null=True)))
    tx = op.get_bind()
    for row in tx.execute(sa.select(table).where(table.c.rules.is_not(None))).all():
        kept = {**row.rules, "guards": list(BEFORE)}
        tx.execute(table.update().where(table.c.id == row.id).values(rules=kept))
