"""Sums of keys and users by week, made of those by day: a page of fifty names read their days by the thousand. Those by day get another
order, each day's names side by side, because only a report's ragged ends are read of them. The indexes by which the hours of a key or a
user are found are in the order of days, too, and have what such a page reads: each hour was on another page of the table. With SQLite, too,
those of days have all that is read of a key or a user, as PostgreSQL's have since r0012. PostgreSQL's primary keys of sums have the sums.

Weeks begin on Thursdays, as 1970 did, so that a division finds them.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_NAMES = ("user_id", "key_id", "model", "backend", "ending", "team_id", "revision", "experiment", "arm")
_USED = ("requests", "prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens", "cost_microusd", "cost_rest_pusd")


def upgrade() -> None:
    sums = ", ".join(f"sum({name})" for name in _USED)
    week = "at / 604800 * 604800"
    _sums_of_each("usage_of_each_week", ("name", "at"), f"kind, scope, name, {week}, team_id", sums, ("team_id", "name", "at"))
    _sums_of_each("usage_of_each_day", ("at", "name"), "kind, scope, at, name, team_id", sums, ("at", "team_id", "name"))
    op.drop_table("usage_of_each")
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "ALTER TABLE usage_totals DROP CONSTRAINT pk_usage_totals, ADD CONSTRAINT pk_usage_totals "
            f"PRIMARY KEY (step_s, kind, scope, at, name) INCLUDE ({', '.join(_USED)})"
        )
    for who in ("key_id", "user_id"):
        for table in ("usage_by_day", "usage_by_hour"):
            op.drop_index(op.f(f"ix_{table}_{who}_at"), table)
        rest = [name for name in _NAMES if name != who]
        op.create_index(op.f(f"ix_usage_by_day_{who}"), "usage_by_day", [who, "at", *rest, *_USED])
        op.create_index(op.f(f"ix_usage_by_hour_{who}"), "usage_by_hour", [sa.text("(at / 86400)"), who, "at", "model", "team_id", *_USED])


def _sums_of_each(table: str, order: tuple[str, str], names: str, sums: str, index: tuple[str, ...]) -> None:
    types: dict[str, sa.types.TypeEngine[Any]] = {"name": sa.Text(), "at": sa.BigInteger()}
    op.create_table(
        table,
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        *(sa.Column(name, types[name], autoincrement=False, nullable=False) for name in order),
        sa.Column("team_id", sa.Text(), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in _USED),
        sa.PrimaryKeyConstraint("kind", "scope", *order, "team_id", name=op.f(f"pk_{table}"), postgresql_include=_USED),
        sqlite_with_rowid=False,
    )
    op.execute(f"INSERT INTO {table} SELECT {names}, {sums} FROM usage_of_each GROUP BY {names} ORDER BY {names}")  # noqa: S608  # no value of anybody's
    columns = ["kind", "scope", *index]
    op.create_index(op.f(f"ix_{table}_{'_'.join(columns)}"), table, columns)
