"""Usage rows say which arm of which experiment (or canary) served the request.

The index by key goes: nothing reads raw rows by key, and it was a third of what a row cost to store.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("usage", sa.Column("experiment", sa.Text(), nullable=True))
    op.add_column("usage", sa.Column("arm", sa.Text(), nullable=True))
    some = sa.text("arm IS NOT NULL")
    op.create_index("ix_usage_arm", "usage", ["started_at"], sqlite_where=some, postgresql_where=some)
    op.drop_index("ix_usage_key_id_started_at", "usage")
