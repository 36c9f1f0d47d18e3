"""Sums of what each team used of each model are kept ready, like those of teams and of models. The index by which reports of both found
their buckets goes.

What is computed here is repeated from gateway.store.rollups, because this script must go on doing the same whatever becomes of that module.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_USED = ("requests", "prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens", "cost_microusd", "cost_rest_pusd")
_SUMS = ", ".join(f"sum({name})" for name in _USED)


def upgrade() -> None:
    dialect = op.get_bind().dialect.name
    joint, padded = ("char(31)", "printf('%012d', revision)") if dialect == "sqlite" else ("chr(31)", "lpad(revision::text, 12, '0')")
    groups = {"all": "''", "backend": "backend", "ending": "ending", "arm": f"experiment || {joint} || arm", "version": padded}
    for step_s, table in ((3600, "usage_by_hour"), (86_400, "usage_by_day")):
        for group, name in groups.items():
            needs = "team_id <> ''" + (" AND arm <> ''" if group == "arm" else "")
            op.execute(
                sa.text(
                    f"INSERT INTO usage_totals SELECT {step_s}, 'team+model/{group}', team_id || {joint} || model AS scope, at, "  # noqa: S608  # no value of anybody's
                    f"{name} AS name, {_SUMS} FROM {table} WHERE {needs} GROUP BY 3, 4, 5"
                )
            )
    for table in ("usage_by_hour", "usage_by_day"):
        op.drop_index(op.f(f"ix_{table}_team_id_model_at"), table)
