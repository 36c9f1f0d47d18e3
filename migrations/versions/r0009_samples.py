"""Metric samples as what was added in each step of time, at several widths. The old ones, which nothing showed, did not say of which host
they were; they go.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0007"
branch_labels = None
depends_on = None

_LABELS = ("model", "backend", "operation", "status")


def upgrade() -> None:
    op.drop_table("metric_samples")
    op.create_table(
        "metric_samples",
        sa.Column("step_s", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("grain", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), autoincrement=False, nullable=False),
        *(sa.Column(label, sa.Text(), nullable=False) for label in _LABELS),
        sa.Column("value", sa.Double(), nullable=False),
        *(sa.Column(f"b{number:02}", sa.Double(), nullable=True) for number in range(20)),
        sa.PrimaryKeyConstraint("step_s", "grain", "name", "at", *_LABELS, name=op.f("pk_metric_samples")),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_metric_samples_series", "metric_samples", ["step_s", "grain", "name", *_LABELS, "at"])
