"""Since when a replica has been heard of without a break: who is silent is gone only for one who has been there."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("replicas", sa.Column("steady_since", sa.Double(), nullable=False, server_default="0"))


def downgrade() -> None:
    op.drop_column("replicas", "steady_since")
