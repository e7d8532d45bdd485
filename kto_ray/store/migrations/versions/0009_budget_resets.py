"""Who began the budget of the loop's life anew, when and why, and which tests were of the lives before."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "budget_resets",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=True),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("who", sa.String(255), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
    )
    op.add_column("rollouts", sa.Column("budget_reset", sa.Integer()))
    op.add_column("requests", sa.Column("who", sa.String(255)))


def downgrade() -> None:
    """Every test is of one life again: the budget has less left than anybody was told, and never more."""
    op.drop_column("requests", "who")
    op.drop_column("rollouts", "budget_reset")
    op.drop_table("budget_resets")
