"""The content log: a switch on keys, what it keeps (encrypted), and what was to be forgotten of it.

No key is switched on by this, so nothing is kept that was not kept before.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("content_log", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.create_table(
        "contents",
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=True),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("team_id", sa.Text(), nullable=True),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("operation", sa.Text(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("ending", sa.Text(), nullable=False),
        sa.Column("not_kept", sa.Text(), nullable=True),
        sa.Column("sealed_with", sa.Text(), nullable=False),
        sa.Column("request_type", sa.Text(), nullable=False),
        sa.Column("answer_type", sa.Text(), nullable=False),
        sa.Column("request_bytes", sa.BigInteger(), nullable=False),
        sa.Column("answer_bytes", sa.BigInteger(), nullable=False),
        sa.Column("request_truncated", sa.Boolean(), nullable=False),
        sa.Column("answer_truncated", sa.Boolean(), nullable=False),
        sa.Column("request", sa.LargeBinary(), nullable=True),
        sa.Column("answer", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("request_id", name=op.f("pk_contents")),
    )
    op.create_index(op.f("ix_contents_key_id_at_request_id"), "contents", ["key_id", "at", "request_id"])
    op.create_index(op.f("ix_contents_user_id_at_request_id"), "contents", ["user_id", "at", "request_id"])
    op.create_index(op.f("ix_contents_model_at_request_id"), "contents", ["model", "at", "request_id"])
    op.create_index(op.f("ix_contents_at_request_id"), "contents", ["at", "request_id"])
    op.create_index(op.f("ix_contents_sealed_with"), "contents", ["sealed_with"])
    op.create_table(
        "content_erasures",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("entity_id", sa.Text(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "entity_id", name=op.f("pk_content_erasures")),
    )
