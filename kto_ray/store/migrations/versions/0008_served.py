"""An index of the service's own answers in time: since when it answers is asked where much was imported."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    own = sa.text("arm <> 'import'")
    op.create_index("ix_completions_served", "completions", ["created_at"], sqlite_where=own, postgresql_where=own)


def downgrade() -> None:
    op.drop_index("ix_completions_served", "completions")
