"""Several candidates of a round, each with a training run of its own."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("rounds", sa.Column("candidates", sa.JSON(), nullable=False, server_default="[]"))
    with op.batch_alter_table("trainings") as batch:
        batch.drop_constraint("uq_trainings_round", type_="unique")
    op.create_index("ix_trainings_round", "trainings", ["round"])
    op.execute("UPDATE compatibility SET oldest = '0007'")


def downgrade() -> None:
    """Of a round the newest run remains, and a candidate that waits is judged again."""
    op.execute("UPDATE rounds SET stage = 'load' WHERE stage IN ('reload', 'approval')")
    op.execute(
        "DELETE FROM trainings WHERE EXISTS (SELECT 1 FROM trainings AS other WHERE other.round = trainings.round "
        "AND (other.started_at, other.run) > (trainings.started_at, trainings.run))"
    )
    op.drop_index("ix_trainings_round", "trainings")
    with op.batch_alter_table("trainings") as batch:
        batch.create_unique_constraint("uq_trainings_round", ["round"])
    op.drop_column("rounds", "candidates")
    op.execute("UPDATE compatibility SET oldest = '0005'")
