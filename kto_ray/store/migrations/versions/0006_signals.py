"""Guards of an A/B test by what users do and by more of what answers are; ratings that answers ask for."""

import time

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
UNKNOWN = ("guards", "max_style_rise", "long_tokens", "max_detectable", "base_holdback")  # rules, to who comes before
BEFORE = ("failed", "aborted", "cut_off", "slow")
TABLE = sa.table("rollouts", sa.column("id", sa.String), sa.column("rules", sa.JSON(none_as_null=True)))


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
    _forget_rules()
    _end_base()
    op.drop_column("arrivals", "faults")
    for name in COUNTS:
        op.drop_column("exposures", name)
    op.drop_index("ix_trials_react_by", "trials")
    op.drop_column("trials", "reactions")
    op.drop_column("trials", "react_by")
    op.drop_index("ix_completions_solicited", "completions")
    op.drop_column("completions", "solicited")


def _forget_rules() -> None:
    """A program that finds a rule which it does not know takes its config's for all of them."""
    tx = op.get_bind()
    for row in tx.execute(sa.select(TABLE).where(TABLE.c.rules.is_not(None))).all():
        kept = {name: value for name, value in row.rules.items() if name not in UNKNOWN}
        tx.execute(TABLE.update().where(TABLE.c.id == row.id).values(rules=kept))


def _end_base() -> None:
    """Nobody before knows of a holdback on the base model, which would count users for ever; another begins later."""
    base = "SELECT id FROM rollouts WHERE kind = 'base'"
    for table in ("arrivals", "voters"):
        op.execute(f"DELETE FROM {table} WHERE rollout IN ({base})")
    ended = sa.text("UPDATE rollouts SET status = 'aborted', ended_at = :now WHERE kind = 'base' AND ended_at IS NULL")
    op.execute(ended.bindparams(now=time.time()))


def _keep_guards() -> None:
    """A test goes on under the rules that it began with, which know of nothing else: of those who are in it already,
    nobody will ever know what they did."""
    tx = op.get_bind()
    for row in tx.execute(sa.select(TABLE).where(TABLE.c.rules.is_not(None))).all():
        kept = {**row.rules, "guards": list(BEFORE)}
        tx.execute(TABLE.update().where(TABLE.c.id == row.id).values(rules=kept))
