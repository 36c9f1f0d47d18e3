"""Limits by the day, budgets in tokens, a percentage at which budgets are told of, a moment from which they count; all of it for teams too.

What keys and users have stays as it is. A user's limits were of what they did with a login token: from now on they bind their keys as well.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("api_keys", "users"):
        _add(table, _new())
    _add("teams", [*_old(), *_new()])
    op.create_table(
        "budget_events",
        sa.Column("limit_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("since", sa.Double(), autoincrement=False, nullable=False),
        sa.Column("threshold", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("forget_at", sa.Double(), nullable=True),
        sa.Column("next_at", sa.Double(), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("limit_id", "kind", "type", "since", "threshold", name=op.f("pk_budget_events")),
    )
    op.create_index(op.f("ix_budget_events_next_at"), "budget_events", ["next_at"])


def _add(table: str, columns: list[sa.Column[Any]]) -> None:
    for column in columns:
        op.add_column(table, column)


def _old() -> list[sa.Column[Any]]:
    counts = [sa.Column(name, sa.BigInteger(), nullable=True) for name in ("rpm", "tpm", "concurrency", "budget_pusd")]
    return [*counts, sa.Column("budget_window", sa.Text(), nullable=True)]


def _new() -> list[sa.Column[Any]]:
    return [
        sa.Column("rpd", sa.BigInteger(), nullable=True),
        sa.Column("tpd", sa.BigInteger(), nullable=True),
        sa.Column("token_budget", sa.BigInteger(), nullable=True),
        sa.Column("token_budget_window", sa.Text(), nullable=True),
        sa.Column("soft", sa.Integer(), nullable=True),
        sa.Column("budget_since", sa.Double(), nullable=True),
    ]
