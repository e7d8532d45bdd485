"""The precision in which a replica computes."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("replicas", sa.Column("dtype", sa.String(length=16), nullable=False, server_default="auto"))
    op.add_column("replicas", sa.Column("dtype_why", sa.Text(), nullable=False, server_default=""))


def downgrade() -> None:
    op.drop_column("replicas", "dtype_why")
    op.drop_column("replicas", "dtype")
